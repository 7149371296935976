"""What a lower bound is a bound over, in words: the choices that it leaves open, and those that it takes as made."""

from collections.abc import Sequence

from autopart.frontier import most_points
from autopart.graph import is_chain
from autopart.layouts import MOST_STAGES_PER_RANK
from autopart.plan import SearchedSize
from autopart.problem import CLASSIC, CUSTOM, Demands, Problem
from autopart.ways import can_treat, leaves_choice, may_offload


def assumptions(problem: Problem, sizes: Sequence[SearchedSize]) -> str:
    """What the certificate of a problem that was searched at some sizes assumes."""
    cuts = "every cut of the chain" if is_chain(problem.graph) else "every cut of the graph"
    demands = problem.demands
    stages = f"{demands.num_stages} stages" if demands.num_stages else "any number of stages"
    replicas = f"{demands.num_replicas} replicas" if demands.num_replicas else "any replicas"
    counts = f"{replicas} (as many for every stage)"
    if demands.replicas_per_stage:
        counts = "replicas of their own for every stage"
    place = "GPUs in their order" if problem.cluster.gpus else "any placement"
    num_pins = len(demands.pins) + len(demands.same_stage) + len(demands.different_stage)
    pins = f", {num_pins} pins kept" if num_pins else ""
    return (
        f"{cuts}{pins}, {stages}, {counts}, {place}, "
        f"{_microbatches(problem, sizes)}, {_orders_allowed(demands)}, {_ways_allowed(problem)}"
        f"{_place_of_state(demands)}"
    )


def _place_of_state(demands: Demands) -> str:
    """What a bound assumes of optimizer state; nothing where it stays on the device."""
    if demands.offload_optimizer == "never":
        return ""
    if demands.offload_optimizer == "always":
        return ", optimizer state on the host"
    return ", optimizer state on the host where a stage's rank is busy for a shorter step so"


def _ways_allowed(problem: Problem) -> str:
    """What a bound assumes of recomputation and offload."""
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
        rule = ", the busy seconds of each stage fewest" if may_offload(demands) else ""
        said += f" ({most_points(problem.graph.layers)} choices a stage{rule})"
    others = [name for name in demands.schedules if not can_treat(name)]
    return said + (" under gpipe and 1f1b" if others else "")


def _orders_allowed(demands: Demands) -> str:
    """What a bound assumes of schedules."""
    if CUSTOM in demands.schedules:
        asked = demands.stages_per_rank
        most = f"{asked}" if asked else f"up to {MOST_STAGES_PER_RANK}"
        return f"any order, whole or split backwards, {most} stages a rank in loops or waves"
    if set(demands.schedules) <= set(CLASSIC):
        return "whole backwards"
    return f"the schedules {', '.join(demands.schedules)}"


def _microbatches(problem: Problem, sizes: Sequence[SearchedSize]) -> str:
    if len(sizes) == 1:
        return f"{problem.num_microbatches} microbatches"
    listed = ", ".join(str(size.microbatch_size) for size in sizes)
    batch = problem.num_microbatches * problem.microbatch_size
    return f"microbatches of {listed} samples in a batch of {batch}"
