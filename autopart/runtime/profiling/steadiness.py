"""Whether rounds of measurement agree, and what keeps them from it where they do not.

A step that becomes slower round by round is that of a device which grows warm and lowers its clock;
one that becomes faster touches memory for the first time, or fills caches. Neither mends itself in
a median. Scatter without a trend comes from others on the machine.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from autopart.runtime.profiling.rounds import LayerTimes, Round
from autopart.runtime.profiling.timing import relative_spread, summarize
from autopart.units import format_share

MAX_WAITING = 0.05
"""Share of the measurement that may go to other processes before the profile warns."""
_TREND = 0.5
"""Rank correlation of step times with the rounds' numbers from which they count as a trend."""
_LARGE = 0.1
"""Share of the step from which a layer's own scatter is worth a word."""
_NAMED = 3
"""Layers that a note names at most."""


class Scatter(NamedTuple):
    """A layer whose rounds do not agree."""

    name: str
    spread: float
    """Interquartile range over median of its forward and backward."""
    share: float
    """Of the step."""


def spread_of(rounds: Sequence[Round]) -> float:
    """Interquartile range over median of the sum of all layers, a share."""
    return relative_spread(step_times(rounds))


def step_times(rounds: Sequence[Round]) -> list[float]:
    """Of each round, the sum of all layers."""
    return [sum(map(_time, one.layers)) for one in rounds]


def steady_end(rounds: Sequence[Round], wanted: int, max_spread: float) -> Sequence[Round] | None:
    """The last `wanted` rounds, where they agree: what came before was the way there."""
    last = rounds[-wanted:]
    return last if len(last) == wanted and spread_of(last) <= max_spread else None


def trend(values: Sequence[float]) -> float:
    """Kendall's rank correlation with the order, -1 (falling throughout) to 1 (rising)."""
    pairs = list(itertools.combinations(values, 2))
    signs = sum((later > earlier) - (later < earlier) for earlier, later in pairs)
    return signs / len(pairs) if pairs else 0.0


def scattered_layers(
    rounds: Sequence[Round], names: Sequence[str], max_spread: float
) -> list[Scatter]:
    """The large layers whose own times scatter by more, the one that disturbs the step most first."""
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
    """What the reader of the times must know: rounds that do not count, scatter, and whose it is."""
    notes: list[str] = []
    dropped = len(all_rounds) - len(counted)
    if dropped:
        notes.append(
            f"the first {dropped} of {len(all_rounds)} rounds do not count: "
            f"{_course(all_rounds, waiting_share)}; the rest are steady"
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
        notes.append(f"the step is steady, but layers of it scatter: {most}")
    return notes


def _course(rounds: Sequence[Round], waiting_share: float) -> str:
    """How the step went from round to round, and what does that."""
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
