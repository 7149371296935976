"""Why nothing fits, and a remedy. Each reason is true: without its cause there would be another one.

    no partition keeps      pins and groups contradict each other      search/conflicts.py
    host memory             offloaded bytes exceed a GPU's share       search/least_memory.py
    memory per GPU          the least that would do, or the number of GPUs     search/least_memory.py
    GPUs that differ        a lower bound on the bytes that they lack  bounds/open_replicas.py

The error also names options that the user left out, where the same search says that they would do
(search/remedies.py).
"""

from collections.abc import Sequence

import msgspec

from autopart.activations.policies import leaves_choice, may_offload
from autopart.bounds.open_replicas import missing_bytes
from autopart.bounds.rank_assignments import takes_gpus_in_order
from autopart.cost.cuts import Cuts, all_cuts
from autopart.errors import InfeasibleError
from autopart.pricing import predict
from autopart.records.cluster import (
    host_share,
    largest_memory,
    num_gpus,
    without_memory_limit,
)
from autopart.records.plan import SolverName
from autopart.records.problem import CUSTOM, LENDING, Problem
from autopart.schedules.catalogue import KINDS
from autopart.search.conflicts import (
    as_typed,
    conflicting_demands,
    layer_demands,
    smallest_conflict,
    stages_in_words,
    with_layer_demands,
)
from autopart.search.least_memory import Need, fewest_stages, least_need
from autopart.search.remedies import some_plan_fits, what_to_try
from autopart.stopping.time_limit import OutOfTime
from autopart.text import counted
from autopart.units import format_bytes

STATE = ("weights", "gradients", "master", "optimizer", "reserve")
"""Memory that stays on each rank, whatever is recomputed or offloaded."""

SUBJECTS: dict[SolverName, str] = {
    "uniform": "no uniform split fits",
    "parameters": "no split by parameters fits",
}
"""The fact to explain, for solvers that look at one partition in each layout."""


def all_tried(problems: Sequence[Problem]) -> bool:
    """Whether a search that ended in time has tried the leanest partition of every layout.

    Own orders may need less memory than any named schedule, and some cuts may not be listed. Where
    the memory of GPUs differs, some of their assignments may not have been tried.
    """
    return all(
        CUSTOM not in problem.demands.schedules
        and all_cuts(problem.graph).complete
        and (
            takes_gpus_in_order(problem)
            or len({gpu.memory_bytes for gpu in problem.cluster.gpus}) < 2
        )
        for problem in problems
    )


def only_partition_is_full(problem: Problem) -> bool:
    """Whether pins and policies leave one partition, and it has no room.

    Then no search is needed. Its bytes are those of its price, also where stages share ranks.
    """
    demands = problem.demands
    decided = len(demands.pins) == len(problem.graph.layers) and not leaves_choice(demands)
    lent = {CUSTOM, *LENDING}.intersection(demands.schedules)
    if not decided or lent or demands.replicas_per_stage or problem.cluster.gpus:
        return False
    need = least_need(problem, all_cuts(problem.graph), "auto")
    return need is not None and need.size > problem.cluster.memory_bytes


def why_infeasible(problem: Problem, solver: SolverName, gpus_per_rank: int = 1) -> InfeasibleError:
    """The error where the solver fits nothing: the cause, the missing memory, and remedies to try.

    `gpus_per_rank` is the tensor degree, where the problem's ranks are tensor groups. In a search that is out of time, the error says so and names no cause.
    """
    try:
        return _why_infeasible(problem, solver, all_cuts(problem.graph), gpus_per_rank)
    except OutOfTime:
        return InfeasibleError(
            f"{SUBJECTS.get(solver, 'no plan exists')}; the time limit left no time to find the reason "
            "and the least memory that would do: try a larger --time-limit"
        )


def _why_infeasible(
    problem: Problem, solver: SolverName, cuts: Cuts, gpus_per_rank: int
) -> InfeasibleError:
    # Step 1: demands that no memory could keep.
    conflict = conflicting_demands(problem, cuts)
    if conflict:
        along = "" if cuts.complete else " along the graph's own order"
        return InfeasibleError(
            f"no partition{along} into {stages_in_words(problem)} keeps {as_typed(conflict)}"
            f"{' at once; drop one of them' if len(conflict) > 1 else '; drop it'}"
        )
    asked = layer_demands(problem.demands)
    if solver in SUBJECTS and asked:
        return InfeasibleError(f"{SUBJECTS[solver]} and keeps {as_typed(asked)}; try --solver auto")
    # Step 2: memory.
    if problem.demands.replicas_per_stage or problem.cluster.gpus:
        return _missing_memory(problem, solver, cuts)
    need = least_need(problem, cuts, solver)
    if need is None or need.size <= problem.cluster.memory_bytes:
        return _no_room_on_host(problem)
    more = _gpus_that_would_do(problem, cuts, solver, gpus_per_rank)
    return _too_little(problem, solver, cuts, need, more)


def _too_little(
    problem: Problem, solver: SolverName, cuts: Cuts, need: Need, more: tuple[str, bool]
) -> InfeasibleError:
    """The error where each GPU has too little memory; `more` says how many GPUs would do, and whether more help."""
    limit, counts = problem.cluster.memory_bytes, need.layout.stage_ranks
    exact = cuts.complete and all(
        name not in (CUSTOM, *LENDING) and KINDS[name].stages_per_rank == 1
        for name in problem.demands.schedules
    )
    # Stash and optimizer state may share the host in more ways than policies are chosen for.
    exact = exact and (host_share(problem.cluster) is None or not may_offload(problem.demands))
    would_do = f"{format_bytes(need.size)} ({counted(need.size, 'byte')})"
    would_do = f"the least that would do is {would_do}" if exact else f"{would_do} would do"
    fewest, more_gpus = more
    stages = predict(problem, need.layout, need.partition)[0]
    return InfeasibleError(
        f"{SUBJECTS.get(solver, 'nothing fits')} into {format_bytes(limit)} per GPU: {would_do}, "
        f"with {counted(len(counts), 'stage')} and {counted(len(counts[0]), 'replica')}"
        f"{_state_alone([sum(getattr(one.memory, kind) for kind in STATE) for one in stages], limit)}"
        f"{fewest}; {what_to_try(problem, solver, cuts, more_gpus=more_gpus)}",
        need.size,
    )


def _state_alone(sizes: Sequence[int], limit: int) -> str:
    """The stage whose state does not fit even alone, and the bytes that it lacks."""
    most = max(sizes)
    if most <= limit:
        return ""
    return (
        f"; there the state of stage {sizes.index(most)} alone (weights, gradients, optimizer, reserve) is "
        f"{format_bytes(most - limit)} too much"
    )


def _gpus_that_would_do(
    problem: Problem, cuts: Cuts, solver: SolverName, gpus_per_rank: int
) -> tuple[str, bool]:
    """The number of GPUs with this memory that would do in one pipeline, in words.

    Also whether more GPUs may help. Several nodes are counted whole.
    """
    demands, cluster = problem.demands, problem.cluster
    asked = demands.num_stages or demands.stages_per_rank or layer_demands(demands)
    if (
        solver not in ("auto", "dp")
        or asked
        or "1f1b" not in demands.schedules
        or not cuts.complete
    ):
        return "", True
    fewest = fewest_stages(problem, cuts)
    if fewest is None:
        return "; no number of GPUs of this memory would do in one pipeline", problem.training.zero1
    nodes = -(-fewest // cluster.gpus_per_node)
    ranks = nodes * cluster.gpus_per_node if nodes > 1 else fewest
    if ranks <= num_gpus(cluster):
        return "", True
    whole = f", {gpus_per_rank * ranks} in whole nodes" if ranks > fewest else ""
    enough = counted(gpus_per_rank * fewest, "GPU")
    return f"; {enough} of this memory would do in one pipeline{whole}", True


def _no_room_on_host(problem: Problem) -> InfeasibleError:
    """The error where devices have room, but offloaded bytes exceed the share on the host."""
    share = host_share(problem.cluster)
    assert share is not None, "without a limit on the host, memory or demands are the reason"
    return InfeasibleError(
        f"what is to be offloaded does not fit into a GPU's share of its host, {format_bytes(share)}; try "
        "--offload auto, --recompute auto, more --host-memory, or a smaller --microbatch-size"
    )


def _missing_memory(problem: Problem, solver: SolverName, cuts: Cuts) -> InfeasibleError:
    """The error where stages have uneven replicas or GPUs differ: the bytes that each GPU lacks.

    Bounds give these bytes. They ask no pins to numbered stages; where GPUs and replicas differ,
    they let any ranks be passed over. Where GPUs alone differ, all count as the largest one.
    """
    cluster, asked = problem.cluster, problem
    if cluster.gpus and not takes_gpus_in_order(problem):
        alike = msgspec.structs.replace(cluster, gpus=(), memory_bytes=largest_memory(cluster))
        asked = msgspec.structs.replace(problem, cluster=alike)
    missing = missing_bytes(asked, cuts)
    if missing is None:
        return _no_room_on_host(problem)
    tried = what_to_try(problem, solver, cuts, more_gpus=True)
    if missing == 0:
        return InfeasibleError(_cause_beyond_bounds(problem, cuts) + tried)
    least = cluster.memory_bytes + missing
    exact = cuts.complete and not problem.demands.pins and not cluster.gpus
    would_do = f"{format_bytes(least)} ({counted(least, 'byte')})"
    would_do = (
        f"the least that would do is {would_do}" if exact else f"at least {would_do} is needed"
    )
    if cluster.gpus:
        would_do = f"each GPU would need {format_bytes(missing)} ({counted(missing, 'byte')}) more at least"
    return InfeasibleError(
        f"nothing fits into {format_bytes(cluster.memory_bytes)} per GPU: {would_do}; {tried}",
        least if exact else None,
    )


def _cause_beyond_bounds(problem: Problem, cuts: Cuts) -> str:
    """The cause where bounds leave room that no plan has: the one without which some plan fits."""
    cluster = problem.cluster
    hosts = msgspec.structs.replace(cluster, host_memory_bytes=None)
    limited = host_share(cluster) is not None
    if limited and some_plan_fits(msgspec.structs.replace(problem, cluster=hosts), cuts):
        return f"{_no_room_on_host(problem)}; or "
    conflict = smallest_conflict(
        layer_demands(problem.demands),
        lambda kept: not some_plan_fits(with_layer_demands(problem, kept), cuts),
    )
    if conflict:
        several = " at once: drop one of them" if len(conflict) > 1 else ": drop it"
        return f"no partition that fits keeps {as_typed(conflict)}{several}, or "
    roomy = without_memory_limit(cluster)
    if some_plan_fits(msgspec.structs.replace(problem, cluster=roomy), cuts):
        sizes = ", ".join(f"{own.count} x {format_bytes(own.memory_bytes)}" for own in cluster.gpus)
        in_order = " in this order" if takes_gpus_in_order(problem) else ""
        return f"nothing fits into GPUs with {sizes}{in_order}; "
    return "no plan keeps all demands within the memory of the GPUs and of their hosts; "
