"""Times for all layers and for the whole model: measured, or computed from a roofline."""

import gc
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from autopart.records.gpu import Gpu
from autopart.records.kernels import Kernels
from autopart.records.profile import MAX_SPREAD
from autopart.runtime.measuring.pace import PaceMeter
from autopart.runtime.measuring.progress import StepCounter
from autopart.runtime.measuring.stopwatch import Stopwatch
from autopart.runtime.profiling.convergence import converged_rounds
from autopart.runtime.profiling.layer_graph import identical_layers
from autopart.runtime.profiling.op_costs import OpCosts
from autopart.runtime.profiling.op_kinds import SeenKernels
from autopart.runtime.profiling.pair_times import measure_pairs
from autopart.runtime.profiling.profiled_model import ProfiledModel
from autopart.runtime.profiling.recompute_cost import AlternativeCosts, measure_recompute_costs
from autopart.runtime.profiling.roofline import RooflineStopwatch, update_time
from autopart.runtime.profiling.rounds import Round, measure_round
from autopart.runtime.profiling.update_time import measure_update
from autopart.runtime.profiling.whole_model import Forward, StepReadings, run_step

MAX_REPEATS = 3
"""Factor on `repeats`: at most so many rounds run until the last `repeats` agree."""
_UPDATE_REPEATS = 5
_RECOMPUTE_REPEATS = 5


class Effort(NamedTuple):
    """How many rounds to measure."""

    warmup: int
    """Rounds that do not count."""
    repeats: int
    """Rounds that count."""
    max_spread: float = MAX_SPREAD
    """Largest step spread at which rounds agree: interquartile range over median."""


class RunAgain(NamedTuple):
    """The places of layers whose forward runs once more."""

    recomputed: Collection[int]
    """In their own backward, for the cost of recomputation."""
    paired: Collection[int] = ()
    """Beside their backward, for the time of an overlapped pair."""


class ModelTimes(NamedTuple):
    """Times for all layers and for the whole model, in seconds."""

    rounds: tuple[Round, ...]
    """Rounds that count."""
    updates: tuple[float, ...]
    """Seconds of the optimizer step over each layer's parameters."""
    recompute_costs: Mapping[int, AlternativeCosts]
    """Recompute costs by the layer's place, for the layers that were asked for."""
    pairs: Mapping[int, tuple[float, ...]]
    """Seconds of overlapped pairs by the layer's place, for the layers that were asked for."""
    waiting_share: float = 0.0
    """Share of the measurement in which other work had the core, 0 to 1."""
    all_rounds: tuple[Round, ...] = ()
    """All rounds, with those before the last `repeats`, which may not count."""
    paces: tuple[float, ...] = ()
    """Samples of the machine's pace before, between and after the rounds that count, in seconds."""
    seen: SeenKernels | None = None
    """The kernels that ran on meta; None where the times were measured."""


def measure_times(
    profiled: ProfiledModel,
    whole: Forward,
    stopwatch: Stopwatch,
    effort: Effort,
    again: RunAgain,
    steps: StepCounter,
) -> ModelTimes:
    """Measure rounds until the last `repeats` agree, at most `MAX_REPEATS` times as many.

    The last `repeats` rounds count if they agree, else all rounds count. Afterwards the layers in
    `again` are recomputed and run in pairs.
    """
    warmup, repeats, max_spread = effort
    rounds: list[Round] = []
    pace = PaceMeter(profiled.leaves[0].device)
    with _garbage_uncollected():
        # Step 1: rounds that warm up caches, allocator and clocks.
        for index in range(warmup):
            steps.next(f"warmup {index + 1} of {warmup}")
            _round(profiled, whole, stopwatch)
        # Step 2: one more round as long as the last ones do not agree.
        wanted = repeats
        pace.sample()
        while len(rounds) < wanted:
            steps.next(f"round {len(rounds) + 1} of {wanted}")
            rounds.append(_round(profiled, whole, stopwatch))
            pace.sample()
            converged = converged_rounds(rounds, repeats, max_spread)
            if converged is None and len(rounds) == wanted < MAX_REPEATS * repeats:
                wanted += 1
                steps.add(1)
        counted = converged_rounds(rounds, repeats, max_spread) or rounds
        # Step 3: optimizer and recomputation, which need no rounds.
        steps.next("optimizer step of each layer")
        updates = _measure_updates(profiled, stopwatch)
        steps.next("layers that are recomputed")
        few = min(repeats, _RECOMPUTE_REPEATS)
        costs = measure_recompute_costs(profiled, again.recomputed, stopwatch, few)
        pairs = measure_pairs(profiled.timed, again.paired, stopwatch, few) if again.paired else {}
    samples = pace.samples[-len(counted) - 1 :]
    return ModelTimes(
        tuple(counted),
        updates,
        costs,
        pairs,
        stopwatch.waiting_share,
        tuple(rounds),
        tuple(samples),
    )


def compute_times(
    profiled: ProfiledModel,
    whole: Forward,
    gpu: Gpu,
    again: RunAgain,
    kernels: Kernels | None = None,
) -> ModelTimes:
    """Run one round under the roofline stopwatch for `gpu`, or under the kernel model of `kernels`."""
    trained = [p for parameters in profiled.parameters for p in parameters if p.requires_grad]
    with OpCosts([p.grad for p in trained if p.grad is not None]) as costs:
        stopwatch = RooflineStopwatch(gpu, costs, profiled.dtype, kernels)
        rounds = (_round(profiled, whole, stopwatch),)
        costs_again = measure_recompute_costs(profiled, again.recomputed, stopwatch, repeats=1)
        pairs = measure_pairs(profiled.timed, again.paired, stopwatch, 1) if again.paired else {}
    updates = (
        sum(
            update_time(gpu, p.numel(), p.element_size(), kernels)
            for p in parameters
            if p.requires_grad
        )
        for parameters in profiled.parameters
    )
    return ModelTimes(rounds, tuple(updates), costs_again, pairs, seen=costs.seen)


def _round(profiled: ProfiledModel, whole: Forward, stopwatch: Stopwatch) -> Round:
    def whole_step() -> StepReadings:
        return run_step(whole, stopwatch)

    return measure_round(profiled.timed, profiled.timed_split, whole_step, stopwatch)


def _measure_updates(profiled: ProfiledModel, stopwatch: Stopwatch) -> tuple[float, ...]:
    """Measure one layer per group of identical ones: their parameters have equal shapes."""
    layers = profiled.captured.layers
    updates = [0.0] * len(layers)
    for places in identical_layers(layers).values():
        parameters = profiled.parameters[places[0]]
        measured = measure_update(parameters, stopwatch, _UPDATE_REPEATS)
        for place in places:
            updates[place] = measured
    return tuple(updates)


@contextmanager
def _garbage_uncollected() -> Generator[None]:
    """Keep Python's garbage collector off during a measurement."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
