"""The times of a model's layers and of the whole model: measured, or from a roofline."""

import gc
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from autopart.gpus import Gpu
from autopart.profile import MAX_SPREAD
from autopart.runtime.profiling.layer_graph import identical_layers
from autopart.runtime.profiling.op_costs import OpCosts
from autopart.runtime.profiling.progress import Steps
from autopart.runtime.profiling.roofline import RooflineStopwatch, update_time
from autopart.runtime.profiling.rounds import Round, measure_round
from autopart.runtime.profiling.run_again import Alternatives, measure_again
from autopart.runtime.profiling.steadiness import steady_end
from autopart.runtime.profiling.subject import Subject
from autopart.runtime.profiling.timing import Stopwatch
from autopart.runtime.profiling.update_time import measure_update
from autopart.runtime.profiling.whole_model import Forward, StepReadings, run_step

MAX_REPEATS = 3
"""How many times `repeats` rounds are measured at most until the last `repeats` agree."""
_UPDATE_REPEATS = 5
_AGAIN_REPEATS = 5


class Effort(NamedTuple):
    """How much to measure."""

    warmup: int
    """Rounds that do not count."""
    repeats: int
    """Rounds that do."""
    max_spread: float = MAX_SPREAD
    """Of the step over the rounds that count, interquartile range over median."""


class Times(NamedTuple):
    """Every round that counts, and the optimizer's step over each layer's parameters."""

    rounds: tuple[Round, ...]
    updates: tuple[float, ...]
    again: Mapping[int, Alternatives]
    """Of the layers that were asked for, by their place."""
    waiting_share: float = 0.0
    """The share of the measurement in which something else had the core."""
    all_rounds: tuple[Round, ...] = ()
    """With those before the steady ones, which do not count."""


def measure_times(
    subject: Subject,
    whole: Forward,
    stopwatch: Stopwatch,
    effort: Effort,
    again: Collection[int],
    steps: Steps,
) -> Times:
    """Run `warmup` rounds that do not count and `repeats` that do; more, up to `MAX_REPEATS` times as
    many, until the last `repeats` agree within `max_spread`. Those count then, and else all do. Behind
    them the layers at `again` run a second time."""
    warmup, repeats, max_spread = effort
    rounds: list[Round] = []
    with _garbage_uncollected():
        for index in range(warmup):
            steps.next(f"warmup {index + 1} of {warmup}")
            _round(subject, whole, stopwatch)
        wanted = repeats
        while len(rounds) < wanted:
            steps.next(f"round {len(rounds) + 1} of {wanted}")
            rounds.append(_round(subject, whole, stopwatch))
            steady = steady_end(rounds, repeats, max_spread)
            if steady is None and len(rounds) == wanted < MAX_REPEATS * repeats:
                wanted += 1
                steps.add(1)
        counted = steady_end(rounds, repeats, max_spread) or rounds
        steps.next("optimizer step of each layer")
        updates = _measure_updates(subject, stopwatch)
        steps.next("layers that run again")
        alternatives = measure_again(subject, again, stopwatch, min(repeats, _AGAIN_REPEATS))
    return Times(tuple(counted), updates, alternatives, stopwatch.waiting_share, tuple(rounds))


def compute_times(
    subject: Subject, whole: Forward, gpu: Gpu, dtype: str, again: Collection[int]
) -> Times:
    """One round under the stopwatch of `gpu`'s roofline."""
    with OpCosts() as costs:
        stopwatch = RooflineStopwatch(gpu, costs, dtype)
        rounds = (_round(subject, whole, stopwatch),)
        alternatives = measure_again(subject, again, stopwatch, repeats=1)
    updates = (
        sum(update_time(gpu, p.numel(), p.element_size()) for p in parameters if p.requires_grad)
        for parameters in subject.parameters
    )
    return Times(rounds, tuple(updates), alternatives)


def _round(subject: Subject, whole: Forward, stopwatch: Stopwatch) -> Round:
    def whole_step() -> StepReadings:
        return run_step(whole, stopwatch)

    return measure_round(subject.timed, subject.timed_split, whole_step, stopwatch)


def _measure_updates(subject: Subject, stopwatch: Stopwatch) -> tuple[float, ...]:
    """Layers with equal computations have equal parameters: one of them is measured."""
    layers = subject.captured.layers
    updates = [0.0] * len(layers)
    for places in identical_layers(layers).values():
        parameters = subject.parameters[places[0]]
        measured = measure_update(parameters, stopwatch, _UPDATE_REPEATS)
        for place in places:
            updates[place] = measured
    return tuple(updates)


@contextmanager
def _garbage_uncollected() -> Generator[None]:
    """Keep Python's garbage collector from running inside a measurement."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
