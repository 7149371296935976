"""Options that a user has left out, and that would make a plan fit."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from autopart.activations.shared_totals import likely_totals
from autopart.bounds.microbatch_path import Mask
from autopart.bounds.of_shape import quick_bounds
from autopart.bounds.open_replicas import all_open_counts
from autopart.bounds.uneven_replicas import ReplicaBounds
from autopart.cost.cuts import Cuts, allowed
from autopart.cost.memory_limits import fits_on_ranks
from autopart.pricing import fits, price
from autopart.records.layouts import Layout, layouts, layouts_of, shapes
from autopart.records.plan import SolverName
from autopart.records.problem import Problem
from autopart.records.training import state_bytes
from autopart.search.least_memory import needs, widest_layouts
from autopart.search.likely_assignments import likely_layouts
from autopart.stopping.time_limit import OutOfTime, check_time


class Option(NamedTuple):
    """An option that a user may allow, and the changes that it makes to a problem."""

    name: str
    """The option as it is typed."""
    demands: Mapping[str, str] = {}
    """Changed fields in the demands."""
    training: Mapping[str, bool] = {}
    """Changed fields in the training."""


def what_to_try(problem: Problem, solver: SolverName, cuts: Cuts, *, more_gpus: bool) -> str:
    """Remedies: options that were tried with success, and some that help in general.

    `more_gpus` says whether more GPUs may help.
    """
    general = ["more memory"]
    general += ["more GPUs"] if more_gpus else []
    general += ["a smaller --microbatch-size"] if problem.microbatch_size > 1 else []
    stepped = any(layer.num_trainable for layer in problem.graph.layers)
    general += ["another --optimizer"] if stepped and state_bytes(problem.training) else []
    *first, last = general
    listed = f"{', '.join(first)}{',' if len(first) > 1 else ''} or {last}" if first else last
    try:
        return f"try {_options_that_would_do(problem, solver, cuts)}{listed}"
    except OutOfTime:
        return f"try {listed}"


def _options_that_would_do(problem: Problem, solver: SolverName, cuts: Cuts) -> str:
    """The options that would each do alone; else as few as would do together."""

    def would_do(options: Sequence[Option]) -> bool:
        return _some_plan_of_solver_fits(_with_options(problem, options), solver, cuts)

    options = _options(problem) if solver in ("auto", "dp", "ilp") else []
    alone = [option for option in options if would_do([option])]
    if alone:
        names = " or ".join(option.name for option in alone)
        return f"{names} ({'each' if len(alone) > 1 else 'that'} would do), "
    if len(options) < 2 or not would_do(options):
        return ""
    # All together would do: leave out each one that the others do not need.
    for option in list(options):
        fewer = [other for other in options if other is not option]
        if would_do(fewer):
            options = fewer
    return f"{' with '.join(option.name for option in options)} (together they would do), "


def _options(problem: Problem) -> list[Option]:
    """The options that the user has not allowed yet, and could."""
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


def _some_plan_of_solver_fits(problem: Problem, solver: SolverName, cuts: Cuts) -> bool:
    """Whether some plan of a solver fits into the memory."""
    if problem.demands.replicas_per_stage or problem.cluster.gpus:
        return some_plan_fits(problem, cuts)
    bounds = quick_bounds(problem, shapes(problem))
    able = [shape for shape, bound in bounds.items() if bound is not None]
    return any(
        fits(problem, price(problem, need.layout, need.partition))
        for need in needs(problem, widest_layouts(problem, able), cuts, solver)
    )


def some_plan_fits(problem: Problem, cuts: Cuts) -> bool:
    """Whether some plan with one stage per rank fits, by the fitting stages in every layout."""
    return any(_some_path_fits(problem, layout, cuts) for layout in _all_layouts(problem, cuts))


def _all_layouts(problem: Problem, cuts: Cuts) -> Iterator[Layout]:
    if problem.demands.replicas_per_stage:
        for counts in all_open_counts(ReplicaBounds(problem, cuts), math.inf):
            yield from layouts_of(problem, counts)
    else:
        for shape in shapes(problem):
            for layout in layouts(problem, *shape):
                yield from (
                    likely_layouts(problem, layout, None) if problem.cluster.gpus else [layout]
                )


def _some_path_fits(problem: Problem, layout: Layout, cuts: Cuts) -> bool:
    """Whether some partition on a layout fits and keeps all demands."""
    reached: Mask = np.zeros(len(cuts.nested), dtype=bool)
    reached[0] = True
    for stage in range(len(layout.stage_ranks)):
        check_time()
        totals = likely_totals(problem, layout, cuts, stage)
        may = allowed(cuts, problem.graph, problem.demands, stage)
        fit = may & fits_on_ranks(totals, problem, layout, stage)
        reached = np.logical_or.reduce(fit[reached], axis=0)
    return bool(reached[-1])
