"""Stages with a replica count each: the smallest bottleneck over downsets, for any cost model.

Symbols   0 … N-1  downsets of a graph, or cuts in a chain, smaller ones first: 0 is empty, N - 1 full
          c        a choice for a stage: its rank count, which also decides its seconds
          seconds_c(k, j)   time for the stage between downsets k < j under choice c
          n        ranks, some may stay idle;  T  a bottleneck

For a fixed T, G(k) is the smallest rank count on which everything behind downset k runs:

    G(N - 1) = 0
    G(k) = min { c's ranks + G(j) :  seconds_c(k, j) <= T,  memory allows it with G(j) ranks behind }

A plan within T exists exactly if G(0) <= n. Fewer ranks behind a stage never hurt that stage:
its seconds do not depend on them, and it has fewer microbatches in flight. So the recurrence needs
no rank count beside the downset. Downsets are settled in ascending order by G, with all choices
at once: O(N² n) for one T. `tighten` then lowers the bottleneck until no plan keeps T. This last T
is the certificate. Derivation and proof: docs/solvers.md.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from autopart.stopping.time_limit import OutOfTime, check_time, limited, passed

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

TOLERANCE = 1e-9
"""Relative difference up to which two sums count as equal."""

BATCH = 1 << 18
"""Flags per array operation, about: smaller batches pay for calls, larger ones miss the cache."""


class DownsetStage(NamedTuple):
    """A stage between two downsets, and its choice."""

    start: int
    """Index of the downset ahead of the stage."""
    end: int
    """Index of the downset after the stage."""
    choice: int
    """Index into the choices."""


S = TypeVar("S")


class BestStages(NamedTuple, Generic[S]):
    """Stages, their bottleneck, and a bottleneck that no stages can beat."""

    bottleneck: float
    lower_bound: float
    stages: tuple[S, ...]


class StageSeconds(Protocol):
    """Seconds for every stage under every choice, as a solver asks for them."""

    @property
    def ranks(self) -> Sequence[int]:
        """Machines that each choice takes, at least 1, ascending."""
        ...

    @property
    def num_downsets(self) -> int:
        """N, the number of downsets."""
        ...

    def seconds_of(self, stage: DownsetStage) -> float:
        """Seconds that one stage takes."""
        ...

    def ranks_ahead(self, limit: float) -> Ints:
        """For each downset the least number of ranks that its layers need within `limit`
        seconds."""
        ...

    def reach(
        self, choices: Ints, limit: float, later: int, ends: Ints, room: Ints
    ) -> tuple[int, Flags]:
        """The stages that end at one of `ends`, as flags.

        The result is a first downset, and flags [choice, end, downset from the first one on]. A
        flag is set where such a stage keeps within `limit` seconds and fits into memory with
        `later` ranks behind it. Downsets that are left out cannot start a stage. Neither can
        downsets that need more than the choice's `room` in ranks ahead. The empty downset is
        asked about in `first_reach`.
        """
        ...

    def first_reach(self, choices: Ints, limit: float, later: int, ends: Ints) -> Flags:
        """Flags [choice, end]: the first stage may end there."""
        ...


@dataclass(slots=True)
class Labels:
    """For each downset the fewest ranks behind it, and a stage there that needs no more."""

    needed: Ints
    """Machines behind each downset; larger than the rank count where these are not enough."""
    ends: Ints
    """End of the stage that starts at each downset."""
    choices: Ints
    """Choice for the stage that starts at each downset."""

    def path(self, start: int) -> tuple[DownsetStage, ...]:
        """The stages from a downset on, up to a target."""
        stages: list[DownsetStage] = []
        while self.needed[start]:
            stages.append(DownsetStage(start, int(self.ends[start]), int(self.choices[start])))
            start = stages[-1].end
        return tuple(stages)


def fewest_ranks(
    seconds: StageSeconds, limit: float, ranks: int
) -> tuple[DownsetStage, ...] | None:
    """The stages within `limit` seconds on the fewest ranks, or None where `ranks` are too
    few.

    `seconds.ranks` must ascend.
    """
    labels = settle(seconds, limit, ranks, np.array([seconds.num_downsets - 1]))
    return labels.path(0) if labels.needed[0] <= ranks else None


def settle(
    seconds: StageSeconds, limit: float, ranks: int, targets: Ints, elsewhere: int = 0
) -> Labels:
    """Labels from each downset to the nearest target, with stages within `limit` seconds.

    Labels above `ranks` are cut off. The search ends when the empty downset is settled. Layers
    ahead of a downset may also run on `elsewhere` further ranks.
    """
    taken = np.array(seconds.ranks)
    size = seconds.num_downsets
    labels = Labels(np.full(size, ranks + 1), np.zeros(size, int), np.zeros(size, int))
    needed = labels.needed
    needed[targets] = 0
    left = ranks + elsewhere - seconds.ranks_ahead(limit)
    # Downsets are settled in ascending order of the ranks behind them.
    for later in range(ranks):
        check_time()
        if needed[0] <= later:
            break
        # Step 1: take the downsets with exactly `later` ranks behind, and enough left for the
        # layers ahead.
        ends = np.flatnonzero((needed == later) & (left >= later))
        choices = np.flatnonzero(later + taken <= ranks)
        # Step 2: look at the choices in batches, so that the flags stay in the cache.
        step = max(1, BATCH // max(1, len(ends) * size))
        for begin in range(0, len(choices) if len(ends) else 0, step):
            group = choices[begin : begin + step]
            room = ranks + elsewhere - later - taken[group]
            for starts, best, by in stages_into(seconds, group, limit, later, ends, room):
                # Step 3: keep a stage where it lowers the rank count behind its start.
                total = later + taken[by]
                better = total < needed[starts]
                starts = starts[better]
                needed[starts] = total[better]
                labels.ends[starts] = best[better]
                labels.choices[starts] = by[better]
    return labels


def stages_into(
    seconds: StageSeconds, choices: Ints, limit: float, later: int, ends: Ints, room: Ints
) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Downsets from which a stage may end at one of `ends`, each with its end and its first choice."""
    # The empty downset first: a stage that starts there has charges that differ.
    first = seconds.first_reach(choices, limit, later, ends)
    by = np.flatnonzero(first.any(axis=1))[:1]
    if len(by):
        yield np.zeros(1, dtype=np.int64), ends[first[by].argmax(axis=1)], choices[by]
    if not room.any():
        return
    # Then all other downsets, a batch of ends at a time.
    step = max(1, BATCH // (len(choices) * seconds.num_downsets))
    for begin in range(0, len(ends), step):
        some = ends[begin : begin + step]
        offset, rows = seconds.reach(choices, limit, later, some, room)
        any_end = np.asarray(rows.any(axis=1))
        starts = np.flatnonzero(any_end.any(axis=0))
        by = any_end[:, starts].argmax(axis=0)
        yield starts + offset, some[rows[by, :, starts].argmax(axis=1)], choices[by]


def bottleneck(
    seconds_of: Callable[[DownsetStage], float], stages: Sequence[DownsetStage]
) -> float:
    """The largest time of any stage, in seconds."""
    return max(seconds_of(stage) for stage in stages)


def tighten(
    stages_within: Callable[[float], tuple[S, ...] | None],
    value: Callable[[tuple[S, ...]], float | None],
    best: BestStages[S] | None,
    low: float,
    high: float,
    deadline: float = math.inf,
) -> BestStages[S] | None:
    """The stages with the smallest bottleneck that `stages_within` finds; None where it finds none.

    `stages_within` finds stages within a bottleneck, or None where there are none. `value` gives
    their real bottleneck. It gives None where they turn out to be invalid; the search then ends
    without a claim.

    The search starts from `best`. Without it, bottlenecks are tried from `low` upwards, up to
    `high` seconds. No plan is below `low`. A bottleneck counts as proven where TOLERANCE less
    cannot be kept; the bound is then the bottleneck itself. `deadline` is a reading from
    time.perf_counter(). After it, the best stages so far are returned with the bound so far.
    """
    proving = best is not None
    within = partial(_in_time, stages_within, deadline)
    if best is None:
        try:
            low, best = _climb(within, value, low, high)
        except OutOfTime:
            return None
        if best is None:
            return None
    while best.bottleneck * (1 - TOLERANCE) > low and not passed(deadline):
        # Step 1: halve the interval, or ask just below the best plan: one refusal there proves it.
        limit = (low + best.bottleneck) / 2
        if proving:
            limit = best.bottleneck * (1 - TOLERANCE)
        # Step 2: an answer lowers the best plan, a refusal raises the bound.
        try:
            stages = within(limit)
        except OutOfTime:
            break
        reached = math.inf if stages is None else value(stages)
        if reached is None:
            break
        if stages is not None and reached < best.bottleneck:
            best = BestStages(reached, low, stages)
            proving = False
        else:
            low = limit
            proving = True
    proven = best.bottleneck * (1 - TOLERANCE) <= low
    return best._replace(lower_bound=best.bottleneck if proven else low)


def _in_time(
    stages_within: Callable[[float], tuple[S, ...] | None], deadline: float, limit: float
) -> tuple[S, ...] | None:
    """Stages within a bottleneck; raises OutOfTime where the deadline passes first."""
    with limited(deadline):
        return stages_within(limit)


def _climb(
    stages_within: Callable[[float], tuple[S, ...] | None],
    value: Callable[[tuple[S, ...]], float | None],
    low: float,
    high: float,
) -> tuple[float, BestStages[S] | None]:
    """Bottlenecks in growing steps from `low` up to `high`; returns the last refusal and the first
    answer."""
    growth = 1.125
    while True:
        limit = min(low * growth, high) if low > 0 else high
        stages = stages_within(limit)
        reached = None if stages is None else value(stages)
        if stages is not None and reached is not None:
            return low, BestStages(reached, low, stages)
        if limit == high:
            return low, None
        low, growth = limit, growth * growth
