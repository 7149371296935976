"""The problem for a search, made from the user's options."""

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from autopart.activations.demands import checked_policies
from autopart.activations.policies import has_policies
from autopart.cost.contention import contended
from autopart.errors import AutopartError
from autopart.records.cluster import SENDS, Cluster, check_cluster, num_gpus
from autopart.records.demands import able_schedules, check_demands
from autopart.records.graph_check import bytes_in
from autopart.records.group_choice import SHARDINGS, GroupDemand, Sharding
from autopart.records.layer_graph import LayerGraph, has_pair_times
from autopart.records.lending import check_lending_sends
from autopart.records.plan import POLICY_LISTS
from autopart.records.problem import (
    CLASSIC,
    CUSTOM,
    OBJECTIVES,
    OFFLOADING,
    PAIRED,
    RECOMPUTING,
    SCHEDULES,
    Demands,
    Objective,
    Pin,
    Problem,
)
from autopart.records.profile import Profile
from autopart.records.rank_group import MOST_DEGREE
from autopart.records.training import DEFAULT_SYNC, make_training
from autopart.schedules.actions import microbatches_per_replica
from autopart.schedules.catalogue import KINDS
from autopart.search.assumed_load import assumed_load
from autopart.search.options import PER_STAGE, SolveOptions
from autopart.search.target_defaults import with_target
from autopart.stopping.time_limit import MOST_ACTIONS
from autopart.text import counted, known_names
from autopart.units import LARGEST

Word = TypeVar("Word", bound=str)

MOST_MICROBATCHES = 2**20
"""The most microbatches per step, over all replicas."""


def make_problem(
    profile: Profile, cluster: Cluster, num_microbatches: int, options: SolveOptions
) -> Problem:
    """The problem for a solve at the profile's microbatch size.

    `num_microbatches` counts the microbatches per step over all replicas. It replaces the batch in
    `options`, which may search several sizes.
    Raises AutopartError on an unknown word, on contradicting options, and on an unknown layer.
    """
    check_cluster(cluster)
    options = with_target(options, cluster, profile.dtype)
    if options.sends is not None:
        sends = _known(options.sends, SENDS, "--sends")
        cluster = msgspec.structs.replace(cluster, sends=sends)
    objective = _known(options.objective, OBJECTIVES, "objective")
    demands = _demands(options, objective, profile.graph)
    demands = _with_own_checkpoints(demands, profile, options)
    check_demands(demands, objective, profile.graph)
    check_lending_sends(demands.schedules, cluster)
    demands = checked_policies(profile.graph, cluster, demands)
    _check_counts(profile.graph, cluster, num_microbatches, demands)
    return Problem(
        graph=contended(profile.graph, cluster),
        cluster=cluster,
        microbatch_size=profile.microbatch_size,
        num_microbatches=num_microbatches,
        training=make_training(
            profile.dtype,
            options.optimizer,
            options.precision,
            options.gradient_dtype,
            zero1=options.zero1 or options.shard == "zero1",
            sync=options.sync or DEFAULT_SYNC,
            bucket_bytes=options.bucket_bytes,
        ),
        demands=demands,
        objective=objective,
    )


def _check_counts(
    graph: LayerGraph, cluster: Cluster, num_microbatches: int, demands: Demands
) -> None:
    """Raise AutopartError where no step of so many microbatches can be simulated or added up."""
    said = f"{counted(num_microbatches, 'microbatch')} per step"
    remedy = "use a smaller --global-batch, or larger microbatches"
    if num_microbatches > MOST_MICROBATCHES:
        raise AutopartError(f"{said} are too many; at most {MOST_MICROBATCHES}: {remedy}")
    if num_microbatches * bytes_in(graph) > LARGEST // 4:
        raise AutopartError(f"{said} have too many bytes to be added up: {remedy}")
    stages = demands.num_stages or 1
    replicas = demands.num_replicas or max(1, num_gpus(cluster) // stages)
    actions = 2 * stages * microbatches_per_replica(num_microbatches, replicas)
    if actions > MOST_ACTIONS:
        raise AutopartError(
            f"{said} on {counted(stages, 'stage')} and {counted(replicas, 'replica')} are "
            f"{counted(actions, 'action')}, and at most {MOST_ACTIONS} are simulated: {remedy}, or more --replicas"
        )


def _demands(options: SolveOptions, objective: Objective, graph: LayerGraph) -> Demands:
    """The demands as a plan file holds them, with every word checked."""
    return Demands(
        num_stages=options.num_stages,
        num_replicas=options.num_replicas,
        replicas_per_stage=options.replicas_per_stage,
        stages_per_rank=options.stages_per_rank,
        schedules=_schedules(options, objective, graph),
        pins=tuple(Pin(layer=name, stage=stage) for name, stage in (options.pins or {}).items()),
        same_stage=tuple(map(tuple, options.same_stage)),
        different_stage=tuple(map(tuple, options.different_stage)),
        recompute=_known(options.recompute or "never", RECOMPUTING, "--recompute"),
        offload=_known(options.offload, OFFLOADING, "--offload"),
        recompute_layers=tuple(options.recompute_layers),
        selective_layers=tuple(options.selective_layers),
        offload_layers=tuple(options.offload_layers),
        offload_optimizer=_known(options.offload_optimizer, OFFLOADING, "--offload-optimizer"),
        keep_layers=tuple(options.keep_layers),
        group=_group(options),
    )


SEQUENCE_PARALLEL = {"auto": None, "on": True, "off": False}
"""The words for sequence parallelism: any, with it, without it."""


EXCHANGES = ("auto", "ring", "gather")
"""The words for the exchange of keys and values: either, or one of the two."""


def _group(options: SolveOptions) -> GroupDemand | msgspec.UnsetType:
    """The tensor degrees that the user asks for; unset for 1."""
    asked = str(options.tensor)
    others = _context_and_shard(options)
    split = _known(options.sequence_parallel, tuple(SEQUENCE_PARALLEL), "--sequence-parallel")
    if asked == PER_STAGE:
        if others:
            raise AutopartError(
                f"--tensor {PER_STAGE} gives stages tensor degrees of their own, and --context, --expert and --shard have one "
                "group for all stages; write --tensor auto, or leave the others out"
            )
        return GroupDemand(sequence_parallel=SEQUENCE_PARALLEL[split], per_stage=True)
    if asked != "auto" and not (asked.isdecimal() and 1 <= int(asked) <= MOST_DEGREE):
        raise AutopartError(
            f"'{asked}' is no tensor degree; write auto, {PER_STAGE}, or a number such as 8"
        )
    if asked == "auto" or int(asked) > 1:
        degree = None if asked == "auto" else int(asked)
        return GroupDemand(tensor=degree, sequence_parallel=SEQUENCE_PARALLEL[split], **others)
    if split == "on":
        raise AutopartError(
            "--sequence-parallel on splits the sequence over a tensor group; ask for one: --tensor auto"
        )
    return GroupDemand(tensor=1, **others) if others else msgspec.UNSET


def _context_and_shard(options: SolveOptions) -> dict[str, Any]:
    """The context and expert degrees, and the sharded state, that the user asks for; empty where neither is."""
    found: dict[str, Any] = {}
    for kind, typed in (("context", str(options.context)), ("expert", str(options.expert))):
        if typed == "auto":
            found[kind] = None
        elif typed != "1":
            found[kind] = _degrees(kind, typed)
    load = assumed_load(options)
    if load is not msgspec.UNSET:
        found["imbalance"] = load
    found |= _exchange(options, has_context="context" in found)
    kinds = sharding_kinds(options.shard)
    chosen = kinds not in (("none",), ("zero1",))
    if options.zero1 and chosen:
        raise AutopartError(
            f"--zero1 shares optimizer state over replicas, and --shard {options.shard} chooses which state is shared; "
            "leave out --zero1"
        )
    if options.shard_degree is not None and {"zero2", "zero3"}.isdisjoint(kinds):
        raise AutopartError(
            f"--shard-degree {options.shard_degree} needs sharded state in a group: --shard zero2, zero3 or auto"
        )
    if chosen:
        found["shard"] = kinds
    if options.shard_degree is not None:
        if not 2 <= options.shard_degree <= MOST_DEGREE:
            raise AutopartError(f"--shard-degree {options.shard_degree}: write a number from 2 on")
        found["shard_degree"] = options.shard_degree
    return found


def _exchange(options: SolveOptions, *, has_context: bool) -> dict[str, Any]:
    """The exchange of keys and values that the user asks for; empty for either."""
    exchange = _known(options.context_exchange, EXCHANGES, "--context-exchange")
    if exchange == "auto":
        return {}
    if not has_context:
        raise AutopartError(
            f"--context-exchange {exchange} is for GPUs that divide each sequence; ask for them: --context auto"
        )
    return {"exchange": exchange}


def sharding_kinds(typed: str) -> tuple[Sharding, ...]:
    """Read "zero2,zero3" or "auto", in ZeRO's order. Raises AutopartError on another word."""
    if typed == "auto":
        return SHARDINGS
    words = [word.strip() for word in typed.split(",")]
    wrong = next((word for word in words if word not in SHARDINGS), None)
    if wrong is not None:
        known = ", ".join((*SHARDINGS, "auto"))
        raise AutopartError(f"unknown --shard '{wrong}'; known: {known}")
    return tuple(kind for kind in SHARDINGS if kind in words)


def _degrees(kind: str, typed: str) -> tuple[int, ...]:
    """Read "1,2,4". Raises AutopartError on anything else."""
    parts = typed.split(",")
    if not all(part.isdecimal() and 1 <= int(part) <= MOST_DEGREE for part in parts):
        raise AutopartError(
            f"'{typed}' are no {kind} degrees; write auto, or numbers such as 1,2,4"
        )
    degrees = tuple(map(int, parts))
    if len(set(degrees)) < len(degrees):
        raise AutopartError(f"--{kind} {typed}: give each degree once")
    return degrees


def _with_own_checkpoints(demands: Demands, profile: Profile, options: SolveOptions) -> Demands:
    """The demands, with recompute for the layers that the model checkpoints itself.

    Another word on recompute or on a layer wins, and so does a schedule without recomputation.
    """
    if options.recompute is not None or not all(map(has_policies, demands.schedules)):
        return demands
    named = {
        name for policy in ("keep", *POLICY_LISTS) for name in getattr(demands, f"{policy}_layers")
    }
    own = [
        layer.name
        for layer in profile.graph.layers
        if layer.checkpointed is True and layer.recompute is not None and layer.name not in named
    ]
    return msgspec.structs.replace(demands, recompute_layers=(*demands.recompute_layers, *own))


def _known(word: str, known: Sequence[Word], option: str) -> Word:
    for one in known:
        if word == one:
            return one
    raise AutopartError(f"unknown {option} '{word}'; known: {', '.join(known)}")


def _schedules(options: SolveOptions, objective: Objective, graph: LayerGraph) -> tuple[str, ...]:
    """The schedules that "1f1b,zb-h1" names; for "auto" all that objective and profile can have.

    Where none is named, those that every executor of plans runs; they never split a backward.
    """
    if options.schedule is None:
        return CLASSIC
    if options.schedule == "auto":
        own = options.replicas_per_stage or str(options.tensor) == PER_STAGE
        able = able_schedules(objective, per_stage=own)
        pairs = CUSTOM in able and has_pair_times(graph)
        return (*able, *PAIRED) if pairs else able
    return parse_schedules(options.schedule)


def parse_schedules(typed: str) -> tuple[str, ...]:
    """Read "auto", or names with commas between. Raises AutopartError with the known names."""
    if typed == "auto":
        return SCHEDULES
    names = tuple(dict.fromkeys(name.strip() for name in typed.split(",")))
    for name in names:
        if name not in KINDS:
            raise AutopartError(f"unknown schedule '{name}'; {known_names(name, ('auto', *KINDS))}")
    return names


def known_schedules(typed: str) -> str:
    """The text as it was typed. Raises AutopartError where `parse_schedules` cannot read it."""
    parse_schedules(typed)
    return typed
