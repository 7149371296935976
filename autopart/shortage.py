"""Why nothing fits, and what would do: the least memory of a GPU, and how many GPUs of this memory.

Least memory: in every layout the partition whose fullest rank holds the fewest bytes, each stage with its
layers treated so that the fewest are left (autopart/frontier.py), by the chain solver. The same over
numbers of stages says how many GPUs would do: in 1F1B with one pipeline the stage that is t-th from the end
(from 0) holds min(t + 1, m) microbatches in flight, whatever their number, so that

    R(0) = {last cut},     R(t + 1) = cuts i with a cut j in R(t) where [i, j] fits with min(t + 1, m) in flight

holds the cuts from which t stages can go on to the end; k stages would do just if the first cut is in R(k).

Options that the user left out are named where the same least memory, with them allowed, is there.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from autopart.cluster import host_share, num_gpus
from autopart.cost import predict, within
from autopart.cuts import Cuts, all_cuts, partition_of
from autopart.errors import InfeasibleError
from autopart.frontier import Limits
from autopart.layout_bounds import Shape, quick_bounds
from autopart.layouts import Layout, layouts, several_stages, shapes
from autopart.plan import StagePrediction
from autopart.pricing import fits, most_bytes, price
from autopart.problem import CUSTOM, Problem
from autopart.replica_bounds import missing_bytes
from autopart.search import SolverName
from autopart.solvers import chain, parameters, uniform
from autopart.stage_load import Partition
from autopart.treated import least_bytes_loads
from autopart.units import format_bytes

STATE = ("weights", "gradients", "master", "optimizer", "reserve")
"""What a rank holds whatever is recomputed or offloaded."""


def why_infeasible(problem: Problem, solver: SolverName) -> InfeasibleError:
    """What a problem lacks into whose memory the solver fits nothing."""
    cuts = all_cuts(problem.graph)
    if problem.demands.replicas_per_stage or problem.cluster.gpus:
        return _what_is_missing(problem, solver, cuts)
    every = _differing_in_bytes(problem, shapes(problem))
    needs = list(_least_bytes(problem, _widest(every), cuts, solver))
    if not needs:
        return InfeasibleError(
            "no partition keeps all pins at once, whatever the memory; drop one of them"
        )
    least, k, widest = min(needs, key=lambda need: need[:2])
    alike = [own for own in every if _pipeline(own) == _pipeline(widest)]
    layout = next(
        own for size, _, own in _least_bytes(problem, alike, cuts, solver) if size == least
    )
    limit = problem.cluster.memory_bytes
    if least <= limit and host_share(problem.cluster) is not None:
        return InfeasibleError(_no_room_on_host(problem))
    replicas = len(layout.stage_ranks[0])
    partition = _leanest(problem, layout, cuts, solver)
    assert partition is not None
    return InfeasibleError(
        f"nothing fits into {format_bytes(limit)} a GPU: the least that would do is "
        f"{format_bytes(least)} ({least} bytes), with {k} stages and {replicas} replicas"
        f"{_state_alone(predict(problem, layout, partition)[0], limit)}"
        f"{_gpus_that_would_do(problem, cuts) if solver in ('auto', 'dp') else ''}; "
        f"{_what_to_try(problem, solver, cuts)}",
        least,
    )


def _least_bytes(
    problem: Problem, among: Iterable[Layout], cuts: Cuts, solver: SolverName
) -> Iterator[tuple[int, int, Layout]]:
    """The least bytes of the fullest rank in each of some layouts, with its stages."""
    for layout in among:
        partition = _leanest(problem, layout, cuts, solver)
        if partition is not None:
            yield _peak(problem, layout, partition), len(layout.stage_ranks), layout


def _pipeline(layout: Layout) -> tuple[str, object]:
    """What tells layouts apart but for their replicas."""
    places = layout.stage_ranks if several_stages(layout) else len(layout.stage_ranks)
    return layout.schedule, places


def _widest(among: Iterable[Layout]) -> Iterable[Layout]:
    """Of layouts that differ in their replicas the one with the most: each of its ranks runs fewer microbatches
    and steps no more parameters, and so holds no more."""
    found: dict[tuple[str, object], Layout] = {}
    for layout in among:
        best = found.setdefault(_pipeline(layout), layout)
        if len(layout.stage_ranks[0]) > len(best.stage_ranks[0]):
            found[_pipeline(layout)] = layout
    return found.values()


def _differing_in_bytes(problem: Problem, among: Iterable[Shape]) -> list[Layout]:
    """The layouts of some shapes, one of those whose ranks hold as much: equal GPUs hold as much wherever
    they stand, and 1F1B never more than GPipe."""
    found: dict[tuple[str, object], Layout] = {}
    for shape in among:
        for layout in layouts(problem, *shape):
            several = several_stages(layout)
            counts = layout.stage_ranks if several else tuple(map(len, layout.stage_ranks))
            if layout.schedule != CUSTOM:
                found.setdefault((layout.schedule, counts), layout)
    return [
        layout
        for (schedule, counts), layout in found.items()
        if schedule != "gpipe" or ("1f1b", counts) not in found
    ]


def _leanest(problem: Problem, layout: Layout, cuts: Cuts, solver: SolverName) -> Partition | None:
    """The solver's partition of a layout whose fullest rank holds the fewest bytes."""
    num_stages = len(layout.stage_ranks)
    if solver == "uniform":
        return uniform.solve(len(problem.graph.layers), num_stages)
    if solver == "parameters":
        return parameters.solve(cuts, num_stages)
    path = chain.least_memory(problem, layout, cuts)
    return None if path is None else partition_of(cuts, path)


def _peak(problem: Problem, layout: Layout, partition: Partition) -> int:
    """Bytes of the fullest rank."""
    if several_stages(layout):
        return most_bytes(price(problem, layout, partition))
    return max(stage.peak_bytes for stage in predict(problem, layout, partition)[0])


def _state_alone(stages: Iterable[StagePrediction], limit: int) -> str:
    """Which stage's state does not fit even alone, and by how much."""
    sizes = [sum(getattr(stage.memory, kind) for kind in STATE) for stage in stages]
    most = max(sizes)
    if most <= limit:
        return ""
    return (
        f"; there the state of stage {sizes.index(most)} alone (weights, gradients, optimizer, reserve) is "
        f"{format_bytes(most - limit)} too much"
    )


def _gpus_that_would_do(problem: Problem, cuts: Cuts) -> str:
    """How many GPUs of this memory would do in one pipeline, in whole nodes where there are several."""
    demands, cluster = problem.demands, problem.cluster
    pinned = demands.pins or demands.same_stage or demands.different_stage
    if demands.num_stages or pinned or "1f1b" not in demands.schedules or not cuts.complete:
        return ""
    fewest = _fewest_stages(problem, cuts)
    if fewest is None:
        return "; no number of GPUs of this memory would do in one pipeline"
    nodes = -(-fewest // cluster.gpus_per_node)
    gpus = nodes * cluster.gpus_per_node if nodes > 1 else fewest
    if gpus <= num_gpus(cluster):
        return ""
    whole = f", {gpus} in whole nodes" if gpus > fewest else ""
    return f"; {fewest} GPUs of this memory would do in one pipeline{whole}"


def _fewest_stages(problem: Problem, cuts: Cuts) -> int | None:
    """The fewest stages of one pipeline that fit under 1F1B; None where no number of them does."""
    goes_on = np.zeros(len(cuts.nested), dtype=bool)
    goes_on[-1] = True
    host, limit = host_share(problem.cluster), problem.cluster.memory_bytes
    for behind in range(len(problem.graph.layers)):
        limits = Limits(min(behind + 1, problem.num_microbatches), limit, host)
        loads = least_bytes_loads(problem, cuts, 1, limits)
        good = cuts.nested & within(loads, problem, 1, limits, limits.held)
        goes_on = (good & goes_on[None, :]).any(axis=1)
        if goes_on[0]:
            return behind + 1
        if not goes_on.any():
            return None
    return None


def _no_room_on_host(problem: Problem) -> str:
    share = host_share(problem.cluster)
    assert share is not None
    return (
        f"what is to be offloaded does not fit into a GPU's share of its host, {format_bytes(share)}; try "
        "--offload auto, --recompute auto, more --host-memory, or a smaller --microbatch-size"
    )


class Option(NamedTuple):
    """Something that a user may allow, and what it changes of the problem."""

    name: str
    demands: Mapping[str, str] = {}
    training: Mapping[str, bool] = {}


def _what_to_try(problem: Problem, solver: SolverName, cuts: Cuts) -> str:
    """What makes the model fit: options that were tried, and what always helps."""
    tried = _options_that_would_do(problem, solver, cuts)
    return f"try {tried}more memory, more GPUs, a smaller --microbatch-size, or another --optimizer"


def _options_that_would_do(problem: Problem, solver: SolverName, cuts: Cuts) -> str:
    """The options of which each alone would do; else as few as would do together."""

    def would_do(options: Sequence[Option]) -> bool:
        return _holds(_with_options(problem, options), solver, cuts)

    options = _options(problem) if solver in ("auto", "dp", "ilp") else []
    alone = [option for option in options if would_do([option])]
    if alone:
        names = " or ".join(option.name for option in alone)
        return f"{names} ({'each' if len(alone) > 1 else 'that'} would do), "
    if len(options) < 2 or not would_do(options):
        return ""
    for option in list(options):
        fewer = [other for other in options if other is not option]
        if would_do(fewer):
            options = fewer
    return f"{' with '.join(option.name for option in options)} (together they would do), "


def _options(problem: Problem) -> list[Option]:
    """What the user has not allowed yet, and could."""
    demands, layers, host = problem.demands, problem.graph.layers, problem.cluster.host_link
    found: list[Option] = []
    if not problem.training.zero1:
        found.append(Option("--zero1", training={"zero1": True}))
    if demands.recompute == "never" and any(la.recompute or la.selective for la in layers):
        found.append(Option("--recompute auto", {"recompute": "auto"}))
    if demands.offload == "never" and host and any(la.stash_bytes for la in layers):
        found.append(Option("--offload auto", {"offload": "auto"}))
    if demands.offload_optimizer == "never" and host:
        found.append(Option("--offload-optimizer auto", {"offload_optimizer": "auto"}))
    return found


def _with_options(problem: Problem, options: Sequence[Option]) -> Problem:
    demands, training = problem.demands, problem.training
    for option in options:
        demands = msgspec.structs.replace(demands, **option.demands)
        training = msgspec.structs.replace(training, **option.training)
    return msgspec.structs.replace(problem, demands=demands, training=training)


def _holds(problem: Problem, solver: SolverName, cuts: Cuts) -> bool:
    """Whether the memory holds a plan."""
    if problem.demands.replicas_per_stage or problem.cluster.gpus:
        return missing_bytes(problem, cuts) == 0
    bounds = quick_bounds(problem, shapes(problem))
    able = [shape for shape, bound in bounds.items() if bound is not None]
    return any(
        fits(problem, price(problem, layout, partition))
        for layout in _widest(_differing_in_bytes(problem, able))
        if (partition := _leanest(problem, layout, cuts, solver)) is not None
    )


def _what_is_missing(problem: Problem, solver: SolverName, cuts: Cuts) -> InfeasibleError:
    missing = missing_bytes(problem, cuts)
    least = problem.cluster.memory_bytes + missing
    if missing == 0:
        return InfeasibleError(
            "no stages were found that fit and keep all demands at once; drop a demand, "
            "or give the search more --time-limit"
        )
    would_do = f"the least that would do is {format_bytes(least)} ({least} bytes)"
    if problem.cluster.gpus:
        would_do = f"each GPU would need {format_bytes(missing)} ({missing} bytes) more at least"
    return InfeasibleError(
        f"nothing fits into {format_bytes(problem.cluster.memory_bytes)} a GPU: {would_do}; "
        f"{_what_to_try(problem, solver, cuts)}",
        None if problem.cluster.gpus else least,
    )
