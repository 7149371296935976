"""Convergence: tells whether rounds agree and, if not, the likely cause.

A step that becomes slower from round to round points to a device that grows warm and lowers its
clock. A step that becomes faster points to memory that is touched for the first time, or to caches
that fill. No median repairs either. Scatter without a trend points to other work on the machine.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from autopart.fidelity.pace import UNSTEADY
from autopart.runtime.measuring.stopwatch import relative_spread, summarize
from autopart.runtime.profiling.rounds import LayerTimes, Round
from autopart.units import format_share

MAX_WAITING = 0.05
"""Share of the measurement for other processes above which the profile warns."""
_TREND = 0.5
"""Rank correlation between step times and round numbers that counts as a trend."""
_LARGE = 0.1
"""Step share above which a layer's own scatter is reported."""
_NAMED = 3
"""Most layers that one note names."""


class Scatter(NamedTuple):
    """A layer whose rounds do not agree."""

    name: str
    spread: float
    """Interquartile range over median, for the layer's forward and backward together."""
    share: float
    """The layer's share of the step."""


def spread_of(rounds: Sequence[Round]) -> float:
    """Return interquartile range over median for the sum over all layers."""
    return relative_spread(step_times(rounds))


def step_times(rounds: Sequence[Round]) -> list[float]:
    """Return the sum over all layers for each round, in seconds."""
    return [sum(map(_time, one.layers)) for one in rounds]


def converged_rounds(
    rounds: Sequence[Round], wanted: int, max_spread: float
) -> Sequence[Round] | None:
    """Return the last `wanted` rounds if they agree, else None."""
    last = rounds[-wanted:]
    return last if len(last) == wanted and spread_of(last) <= max_spread else None


def trend(values: Sequence[float]) -> float:
    """Return Kendall's rank correlation with the order: -1 (always falls) to 1 (always rises)."""
    pairs = list(itertools.combinations(values, 2))
    signs = sum((later > earlier) - (later < earlier) for earlier, later in pairs)
    return signs / len(pairs) if pairs else 0.0


def scattered_layers(
    rounds: Sequence[Round], names: Sequence[str], max_spread: float
) -> list[Scatter]:
    """Return the large layers that scatter by more, the largest disturbance of the step first."""
    by_layer = [[_time(one.layers[place]) for one in rounds] for place in range(len(names))]
    whole = sum(summarize(times).median for times in by_layer)
    found = [
        Scatter(name, relative_spread(times), summarize(times).median / whole)
        for name, times in zip(names, by_layer, strict=True)
        if whole
    ]
    large = [one for one in found if one.share >= _LARGE and one.spread > max_spread]
    return sorted(large, key=lambda one: -one.spread * one.share)


def notes_on_rounds(
    counted: Sequence[Round],
    all_rounds: Sequence[Round],
    names: Sequence[str],
    waiting_share: float,
    max_spread: float,
) -> list[str]:
    """Return notes for the reader: rounds that do not count, scatter and its likely cause."""
    notes: list[str] = []
    dropped = len(all_rounds) - len(counted)
    if dropped:
        notes.append(
            f"the first {dropped} of {len(all_rounds)} rounds do not count: "
            f"{_course(all_rounds, waiting_share)}; the others agree"
        )
    layers = scattered_layers(counted, names, max_spread)
    most = ", ".join(f"{one.name} by {format_share(one.spread)}" for one in layers[:_NAMED])
    spread = spread_of(counted)
    if spread > max_spread:
        notes.append(
            f"the step time scattered by {format_share(spread)} (interquartile range over median) "
            f"in {len(counted)} rounds{f', {most}' if most else ''}: {_course(counted, waiting_share)}; "
            f"{_advice(counted)}"
        )
    elif layers:
        notes.append(f"the step has converged, but some of its layers scatter: {most}")
    return notes


def notes_on_pace(
    counted: Sequence[Round], paces: Sequence[float], waiting_share: float, max_spread: float
) -> list[str]:
    """Return a note where the fixed work scattered, unless another note says so already.

    `paces` are the work's seconds before, between and after the rounds.
    """
    is_said = waiting_share > MAX_WAITING or spread_of(counted) > max_spread
    if is_said or not paces or (spread := relative_spread(paces)) <= UNSTEADY:
        return []
    return [
        f"the machine's pace varied by {format_share(spread)} (interquartile range over median of a fixed "
        "piece of work); profile again once it is at rest, or compare runs at equal pace only"
    ]


def _course(rounds: Sequence[Round], waiting_share: float) -> str:
    """Tell how the step changed from round to round, and the likely cause."""
    times = step_times(rounds)
    third = max(1, len(times) // 3)
    first, last = summarize(times[:third]).median, summarize(times[-third:]).median
    change = format_share(abs(last / first - 1)) if first else ""
    if trend(times) >= _TREND:
        return f"it grew by {change} from first to last, as on a device that grows warm"
    if trend(times) <= -_TREND:
        return (
            f"it fell by {change} from first to last, as while memory is touched for the first time"
        )
    if waiting_share > MAX_WAITING:
        return "it went up and down, with other processes on the machine"
    return "it went up and down, as where others use caches, memory or the device"


def _advice(rounds: Sequence[Round]) -> str:
    if abs(trend(step_times(rounds))) >= _TREND:
        return "let it settle with more --warmup"
    return "measure on an idle machine, or with more --repeats"


def _time(layer: LayerTimes) -> float:
    return layer.forward + layer.backward
