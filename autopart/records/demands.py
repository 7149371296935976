"""Whether the demands on a plan are possible at all: known words and layers, compatible counts."""

import difflib
import itertools
from collections.abc import Sequence

from autopart.errors import AutopartError
from autopart.records.group_choice import GroupDemand
from autopart.records.layer_graph import LayerGraph, has_pair_times, positions
from autopart.records.problem import (
    BIDIRECTIONAL,
    CLASSIC,
    CUSTOM,
    LENDING,
    PAIRED,
    SCHEDULES,
    Demands,
    Objective,
)
from autopart.text import counted


def check_demands(demands: Demands, objective: Objective, graph: LayerGraph) -> None:
    """Raise AutopartError where demands name an unknown word or layer, or exclude each other."""
    _check_counts(demands, objective)
    _check_schedules(demands, objective)
    _check_pairs(demands, graph)
    _check_layers(demands, list(positions(graph)))
    _check_pins(demands)


def able_schedules(objective: Objective, *, per_stage: bool) -> tuple[str, ...]:
    """The schedules that an objective can have; `per_stage` where stages have their own replicas or degrees."""
    return CLASSIC if per_stage or objective == "bottleneck" else SCHEDULES


def has_own_degrees(demands: Demands) -> bool:
    """Whether stages may have tensor degrees of their own."""
    return isinstance(demands.group, GroupDemand) and demands.group.per_stage is True


def _check_counts(demands: Demands, objective: Objective) -> None:
    """Raise AutopartError on a count below 1, and on counts that exclude each other."""
    if demands.replicas_per_stage and objective != "step":
        raise AutopartError(
            f"the {objective} needs equal replicas for all stages; leave out --replicas per-stage, or "
            "minimise the step"
        )
    if has_own_degrees(demands):
        _check_own_degrees(demands, objective)
    counts = (
        ("stages", demands.num_stages),
        ("replicas", demands.num_replicas),
        ("stages per rank", demands.stages_per_rank),
    )
    for noun, count in counts:
        if count is not None and count < 1:
            raise AutopartError(f"{count} {noun}: there must be at least 1")
    if demands.replicas_per_stage and demands.num_replicas is not None:
        raise AutopartError(
            f"{counted(demands.num_replicas, 'replica')} for every stage, or replicas of their own: ask for one "
            "of them"
        )
    if demands.replicas_per_stage and demands.stages_per_rank not in (None, 1):
        raise AutopartError(
            f"{counted(demands.stages_per_rank, 'stage')} per rank need equal replicas for all stages; leave out "
            "--stages-per-rank or --replicas per-stage"
        )


def _check_own_degrees(demands: Demands, objective: Objective) -> None:
    """Raise AutopartError on choices that tensor degrees per stage exclude."""
    excluded = (
        (objective != "step", f"the step, not the {objective}"),
        (demands.replicas_per_stage, "equal replicas, not --replicas per-stage"),
        (demands.stages_per_rank not in (None, 1), "one stage per rank"),
    )
    for breaks, needed in excluded:
        if breaks:
            raise AutopartError(f"--tensor per-stage needs {needed}; write --tensor auto")


def _check_schedules(demands: Demands, objective: Objective) -> None:
    own_degrees = has_own_degrees(demands)
    able = able_schedules(objective, per_stage=demands.replicas_per_stage or own_degrees)
    if able == SCHEDULES:
        able = (*SCHEDULES, *BIDIRECTIONAL, *PAIRED, *LENDING)
    names = demands.schedules
    for name in names:
        if name not in able:
            reason = "replicas of their own" if demands.replicas_per_stage else "the bottleneck"
            reason = "tensor degrees of their own" if own_degrees else reason
            known = name in (*SCHEDULES, *BIDIRECTIONAL, *PAIRED, *LENDING)
            where = f"for {reason}, " if known else ""
            raise AutopartError(f"{where}schedule is one of {', '.join(able)}, not '{name}'")
    if CUSTOM in names and not set(names).isdisjoint(BIDIRECTIONAL):
        raise AutopartError(
            f"own orders are not searched for two pipelines over the same ranks; ask for "
            f"{' or '.join(BIDIRECTIONAL)} alone or with other names"
        )
    lending = [name for name in names if name in LENDING]
    if lending and CUSTOM in names:
        raise AutopartError(
            f"own orders lend no stash; ask for {lending[0]} alone or with other names"
        )
    if lending and objective == "period":
        raise AutopartError(
            f"the period has no bound for stash that is lent, as under {lending[0]}; minimise the step, or take "
            f"another schedule than {lending[0]}"
        )
    if lending and isinstance(demands.group, GroupDemand):
        raise AutopartError(
            f"{lending[0]} lends the stash of one GPU, not that of a tensor group; leave out --tensor, or "
            f"take another schedule than {lending[0]}"
        )
    if not names or len(set(names)) < len(names):
        raise AutopartError(f"schedules {list(names)}: name at least one, and each once")


def _check_pairs(demands: Demands, graph: LayerGraph) -> None:
    """Raise AutopartError where a schedule needs pair times, and the profile has none."""
    for name in demands.schedules:
        if name in PAIRED and not has_pair_times(graph):
            raise AutopartError(
                f"schedule '{name}' runs a forward beside a backward, and the profile does not have the time "
                "of such a pair: measure it with 'autopart profile --pairs', or take --schedule "
                f"{name.removeprefix('paired-')}"
            )


def _check_layers(demands: Demands, known: Sequence[str]) -> None:
    groups = (
        [pin.layer for pin in demands.pins],
        *demands.same_stage,
        *demands.different_stage,
        demands.recompute_layers,
        demands.selective_layers,
        demands.offload_layers,
        demands.keep_layers,
    )
    names = set(known)
    for name in itertools.chain(*groups):
        if name not in names:
            near = difflib.get_close_matches(name, known, 3) or known[:3]
            raise AutopartError(f"the profile knows no layer '{name}'; near it: {', '.join(near)}")


def _check_pins(demands: Demands) -> None:
    stages = demands.num_stages
    for pin in demands.pins:
        if pin.stage < 0 or (stages is not None and pin.stage >= stages):
            raise AutopartError(
                f"layer '{pin.layer}' is pinned to stage {pin.stage}; stages count from 0"
                + (f" to {stages - 1}" if stages else "")
            )
    pinned = tuple(pin.layer for pin in demands.pins)
    for names in (pinned, *demands.same_stage, *demands.different_stage):
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise AutopartError(f"layer '{twice}' stands twice in one demand; name it once")
