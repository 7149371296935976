"""The assumptions behind a lower bound, in words: the choices that are open, and those made."""

import itertools
from collections.abc import Collection, Sequence

import msgspec

from autopart.activations.frontier import FIRST_POINTS, most_points
from autopart.activations.policies import (
    has_policies,
    leaves_choice,
    may_offload,
)
from autopart.bounds.rank_assignments import takes_gpus_in_order
from autopart.records.expert_load import load_in_words
from autopart.records.group_choice import GroupDemand, Sharding, is_tensor_demand
from autopart.records.layer_graph import is_chain
from autopart.records.layouts import MOST_STAGES_PER_RANK
from autopart.records.plan import SearchedSize
from autopart.records.problem import BIDIRECTIONAL, CLASSIC, CUSTOM, PAIRED, Demands, Problem
from autopart.records.rank_group import (
    Group,
    StageDegrees,
    context_degree,
    expert_degree,
    has_ring,
    tensor_degree,
)
from autopart.records.training import makes_gradients
from autopart.text import counted, in_words


def assumptions(problem: Problem, sizes: Sequence[SearchedSize]) -> str:
    """The assumptions in one sentence, for a problem that was searched at some microbatch sizes."""
    cuts = "every cut of the chain" if is_chain(problem.graph) else "every cut of the graph"
    demands = problem.demands
    even = "even " if set(demands.schedules) <= set(BIDIRECTIONAL) else ""
    stages = f"any {even}number of stages"
    if demands.num_stages:
        stages = counted(demands.num_stages, "stage")
    counts = f"any {even}number of replicas that divides the microbatches, equal for all stages"
    if demands.num_replicas:
        counts = f"{counted(demands.num_replicas, 'replica')} for every stage"
    if demands.replicas_per_stage:
        counts = "replicas of their own for every stage"
    in_order = takes_gpus_in_order(problem)
    place = "GPUs in their order" if in_order else "any assignment of ranks to GPUs"
    num_pins = len(demands.pins) + len(demands.same_stage) + len(demands.different_stage)
    pins = f", {counted(num_pins, 'pin')} kept" if num_pins else ""
    return (
        f"{cuts}{pins}, {stages}, {counts}, {place}, "
        f"{_groups(demands, sizes)}{_microbatches(problem, sizes)}, {_orders_allowed(demands)}, {_policies_allowed(problem)}"
        f"{_place_of_state(demands)}"
    )


def _groups(demands: Demands, sizes: Sequence[SearchedSize]) -> str:
    """The assumption on rank groups; empty where none was asked for."""
    demand = demands.group
    if not isinstance(demand, GroupDemand):
        return ""
    one = [size for size in sizes if not isinstance(size.per_stage, StageDegrees)]
    if not one:
        # A plan by hand is bounded over its own kind of plans alone.
        return _own_degrees(sizes).removeprefix("or ")
    groups = [size.group for size in one if isinstance(size.group, Group)]
    said = [_listed("tensor", {tensor_degree(size.group) for size in one})]
    split = {group.sequence_parallel for group in groups if group.tensor > 1}
    if split:
        words = {True: "with", False: "without"}
        said[0] += f" {' and '.join(words[own] for own in sorted(split))} sequence parallelism"
    if demand.context is not msgspec.UNSET:
        rings = {has_ring(group) for group in groups if group.context > 1}
        words = " with ring exchange" * (True in rings) + " or without" * (len(rings) > 1)
        said.append(_listed("context", {context_degree(size.group) for size in one}) + words)
    if demand.expert is not msgspec.UNSET:
        said.append(_listed("expert", {expert_degree(size.group) for size in one}))
    if demand.imbalance is not msgspec.UNSET:
        said.append(f"expert ranks with {load_in_words(demand.imbalance)}")
    if isinstance(demand.shard, tuple):
        said.append(_state_shared(demand.shard, groups))
    nodes = "one node" if is_tensor_demand(demand) else "one node or of whole nodes"
    return f"{', '.join(said)} on GPUs of {nodes}, {_own_degrees(sizes)}"


def _listed(kind: str, degrees: set[int]) -> str:
    ordered = sorted(degrees)
    if len(ordered) == 1:
        return f"{kind} degree {ordered[0]}"
    return f"every {kind} degree in {', '.join(map(str, ordered))}"


def _state_shared(kinds: Sequence[Sharding], groups: Sequence[Group]) -> str:
    """The kinds of sharded state, and over how many GPUs."""
    degrees = sorted({group.data for group in groups if group.data > 1})
    found = [
        {"none": "no sharded state", "zero1": "ZeRO-1 over replicas"}[kind]
        for kind in kinds
        if kind in ("none", "zero1")
    ]
    inside = [kind for kind in kinds if kind in ("zero2", "zero3")]
    if degrees and inside:
        once = " with one sum per step" * any(group.reduce == "step" for group in groups)
        found.append(f"{' or '.join(inside)} over {' or '.join(map(str, degrees))}{once}")
    return " or ".join(found)


def _own_degrees(sizes: Sequence[SearchedSize]) -> str:
    """The assumption on plans whose stages have tensor degrees of their own; empty where none were searched."""
    able = [size.per_stage.degrees for size in sizes if isinstance(size.per_stage, StageDegrees)]
    if not able:
        return ""
    listed = ", ".join(map(str, sorted(set(itertools.chain(*able)))))
    return (
        f"or every stage's own of {listed} (equal replicas, one degree for all copies of a tied parameter, "
        "larger groups first on GPUs in their order, stages or pipelines side by side), "
    )


def _place_of_state(demands: Demands) -> str:
    """The assumption on optimizer state; empty where it stays on the device."""
    if demands.offload_optimizer == "never":
        return ""
    if demands.offload_optimizer == "always":
        return ", optimizer state on the host"
    classic = [name for name in demands.schedules if name in CLASSIC]
    other = [name for name in demands.schedules if has_policies(name) and name not in CLASSIC]
    rule = "where a stage's rank is busy for a shorter step so"
    if other:
        rule = (
            f"{rule} under {in_words(classic)}, of any stages elsewhere"
            if classic
            else "of any stages"
        )
    kept = [name for name in demands.schedules if not has_policies(name)]
    said = f", on the device under {in_words(kept)}" if kept else ""
    return f", optimizer state on the host {rule}{said}"


def _policies_allowed(problem: Problem) -> str:
    """The assumption on recomputation and offload."""
    demands = problem.demands
    if not leaves_choice(demands):
        return "no recomputation, no offload"
    recomputed = {
        "never": "no layers",
        "auto": "any layers",
        "selective": "the cheap part of all layers",
        "always": "all layers that can be",
    }[demands.recompute]
    offloaded = {"never": "none", "auto": "any", "always": "all others"}[demands.offload]
    said = f"{recomputed} recomputed, {offloaded} offloaded"
    named = (
        *demands.recompute_layers,
        *demands.selective_layers,
        *demands.offload_layers,
        *demands.keep_layers,
    )
    said += f" but for {len(named)} named" if named else ""
    if "auto" in (demands.recompute, demands.offload):
        classic = set(demands.schedules).intersection(CLASSIC)
        rule = ", the busy seconds of each stage fewest" if may_offload(demands) and classic else ""
        if rule and classic != set(demands.schedules):
            rule += f" under {in_words(sorted(classic))}"
        said += f" ({_choices(problem, classic)} choices per stage{rule})"
    return said + _schedules_without_policies(demands)


def _choices(problem: Problem, classic: Collection[str]) -> str:
    """How many choices of policies each stage has; fewer where its first backward counts apart."""
    most = most_points(problem.graph.layers)
    if most <= FIRST_POINTS or not classic or not makes_gradients(problem.training):
        return str(most)
    return f"{most}, or {FIRST_POINTS} with all microbatches in flight at once,"


def _schedules_without_policies(demands: Demands) -> str:
    """The schedules under which all layers are kept; empty where there are none."""
    kept = [name for name in demands.schedules if not has_policies(name)]
    return f", all kept under {in_words(kept)}" if kept else ""


def _orders_allowed(demands: Demands) -> str:
    """The assumption on schedules."""
    if CUSTOM in demands.schedules:
        asked = demands.stages_per_rank
        most = counted(asked, "stage") if asked else f"up to {MOST_STAGES_PER_RANK} stages"
        return f"any order, whole or split backwards, {most} per rank in loops or waves{_pairs(demands)}"
    one = len(demands.schedules) == 1
    said = f"the order{'' if one else 's'} of {in_words(demands.schedules)}"
    both = [name for name in demands.schedules if name in BIDIRECTIONAL]
    if both:
        said += f", stage s and stage k - 1 - s of k on the same ranks under {in_words(both)}"
    return said + _pairs(demands)


def _pairs(demands: Demands) -> str:
    """The assumption on overlapped pairs; empty where no schedule has them."""
    paired = [name for name in demands.schedules if name in PAIRED]
    if not paired:
        return ""
    where = "" if CUSTOM in demands.schedules else f" under {in_words(paired)}"
    return f", a forward beside a backward at the profile's pair times{where}"


def _microbatches(problem: Problem, sizes: Sequence[SearchedSize]) -> str:
    """The assumption on microbatches and their sizes."""
    searched = list(dict.fromkeys(size.microbatch_size for size in sizes))
    if len(searched) == 1:
        return counted(problem.num_microbatches, "microbatch")
    listed = ", ".join(map(str, searched))
    batch = problem.num_microbatches * problem.microbatch_size
    return f"microbatches of {listed} samples in a batch of {batch}"
