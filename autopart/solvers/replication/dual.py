"""Stages with a replica count each: the smallest bottleneck over states, for any load.

Symbols   0 … N-1  states: the cuts of a chain or downsets of a graph, smaller ones first; 0 is empty,
                   N - 1 holds everything
          c        a choice for a stage: how many machines it takes, and what that makes of its load
          load_c(k, j)   the load of the stage between states k < j under choice c
          n        machines, which may stay idle;  T  a bottleneck

For a fixed T, G(k) is the fewest machines on which everything behind state k runs:

    G(N - 1) = 0
    G(k) = min { c's machines + G(j) :  load_c(k, j) <= T,  memory allows it with G(j) machines behind }

T can be kept exactly if G(0) <= n: fewer machines behind a stage never hurt it (its load does not
depend on them, and it has the fewer microbatches in flight), so the count of machines need not be in the
state. States are settled in the order of G, by all choices at once: O(N² n) for one T. The bottleneck
is then lowered until no plan keeps T: `tighten`. That last T is the certificate.
Derivation and proof: docs/solvers.md.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

TOLERANCE = 1e-9
"""Relative difference up to which two sums of times are one."""

BATCH = 1 << 18
"""About how many flags one array operation looks at: calls cost more below, caches miss above."""


class Stage(NamedTuple):
    """The stage between two states, and its choice."""

    start: int
    end: int
    choice: int


S = TypeVar("S")


class Found(NamedTuple, Generic[S]):
    """Stages, their bottleneck, and a bottleneck that no stages can beat."""

    bottleneck: float
    lower_bound: float
    stages: tuple[S, ...]


class Loads(Protocol):
    """What a solver asks about stages."""

    @property
    def machines(self) -> Sequence[int]:
        """The machines that each choice takes, at least 1."""
        ...

    @property
    def num_states(self) -> int:
        """N."""
        ...

    def load(self, stage: Stage) -> float:
        """Seconds of one stage."""
        ...

    def machines_ahead(self, limit: float) -> Ints:
        """Machines that everything ahead of each state needs at least, within `limit` seconds."""
        ...

    def reach(
        self, choices: Ints, limit: float, later: int, ends: Ints, room: Ints
    ) -> tuple[int, Flags]:
        """A first state, and for each choice whether a stage from each state on may end at each of
        `ends`: shape (choices, ends, some states). Such a stage keeps within `limit` seconds and fits
        into memory with `later` machines behind it. States that are left out cannot start one, nor
        can those that need more than the choice's `room` of machines ahead; whether the empty state
        can is said by `first_reach`."""
        ...

    def first_reach(self, choices: Ints, limit: float, later: int, ends: Ints) -> Flags:
        """For each choice whether the first stage may end at each of `ends`."""
        ...


@dataclass(slots=True)
class Labels:
    """For each state the fewest machines behind it, and the stage there that needs no more."""

    needed: Ints
    """More than there are where that many are not enough."""
    ends: Ints
    choices: Ints

    def path(self, start: int) -> tuple[Stage, ...]:
        """The stages from a state on, up to one that needs no machine."""
        stages: list[Stage] = []
        while self.needed[start]:
            stages.append(Stage(start, int(self.ends[start]), int(self.choices[start])))
            start = stages[-1].end
        return tuple(stages)


def fewest_machines(loads: Loads, limit: float, machines: int) -> tuple[Stage, ...] | None:
    """Stages that keep within `limit` seconds on the fewest machines; None where `machines` are not
    enough. `loads.machines` must ascend."""
    labels = settle(loads, limit, machines, np.array([loads.num_states - 1]))
    return labels.path(0) if labels.needed[0] <= machines else None


def settle(loads: Loads, limit: float, machines: int, targets: Ints, elsewhere: int = 0) -> Labels:
    """The fewest machines from each state to one of the targets, up to `machines`, stages within
    `limit` seconds; ends when the empty state is settled. What is ahead of a state may also run on
    `elsewhere` machines more."""
    taken = np.array(loads.machines)
    size = loads.num_states
    labels = Labels(np.full(size, machines + 1), np.zeros(size, int), np.zeros(size, int))
    needed = labels.needed
    needed[targets] = 0
    left = machines + elsewhere - loads.machines_ahead(limit)
    for later in range(machines):
        if needed[0] <= later:
            break
        ends = np.flatnonzero((needed == later) & (left >= later))
        choices = np.flatnonzero(later + taken <= machines)
        step = max(1, BATCH // max(1, len(ends) * size))
        for begin in range(0, len(choices) if len(ends) else 0, step):
            group = choices[begin : begin + step]
            room = machines + elsewhere - later - taken[group]
            for starts, best, by in stages_into(loads, group, limit, later, ends, room):
                total = later + taken[by]
                better = total < needed[starts]
                starts = starts[better]
                needed[starts] = total[better]
                labels.ends[starts] = best[better]
                labels.choices[starts] = by[better]
    return labels


def stages_into(
    loads: Loads, choices: Ints, limit: float, later: int, ends: Ints, room: Ints
) -> Iterator[tuple[Ints, Ints, Ints]]:
    """States from which a stage may end at one of `ends`, each with that end and its first choice."""
    first = loads.first_reach(choices, limit, later, ends)
    by = np.flatnonzero(first.any(axis=1))[:1]
    if len(by):
        yield np.zeros(1, dtype=np.int64), ends[first[by].argmax(axis=1)], choices[by]
    if not room.any():
        return
    step = max(1, BATCH // (len(choices) * loads.num_states))
    for begin in range(0, len(ends), step):
        some = ends[begin : begin + step]
        offset, rows = loads.reach(choices, limit, later, some, room)
        any_end = np.asarray(rows.any(axis=1))
        starts = np.flatnonzero(any_end.any(axis=0))
        by = any_end[:, starts].argmax(axis=0)
        yield starts + offset, some[rows[by, :, starts].argmax(axis=1)], choices[by]


class HasLoads(Protocol):
    """What can say the load of a stage."""

    def load(self, stage: Stage) -> float:
        """Seconds of one stage."""
        ...


def bottleneck(loads: HasLoads, stages: Sequence[Stage]) -> float:
    """The largest load of stages."""
    return max(loads.load(stage) for stage in stages)


def tighten(
    probe: Callable[[float], tuple[S, ...] | None],
    value: Callable[[tuple[S, ...]], float | None],
    best: Found[S] | None,
    low: float,
    high: float,
    deadline: float = math.inf,
) -> Found[S] | None:
    """The stages with the smallest bottleneck that `probe` finds; None where it finds none.

    `probe` finds stages within a bottleneck, or says that there are none; `value` says what their
    bottleneck is, or None where they turn out to be none: then the search ends, and nothing follows.
    It starts from `best`, or looks for what can be kept from `low` upwards, at most within `high`
    seconds; nothing is below `low`. A bottleneck within TOLERANCE of one that cannot be kept is proven:
    the bound is then the bottleneck itself. After `deadline`, a reading of time.perf_counter(), the
    best so far is returned with the bound that was reached.
    """
    proving = best is not None
    if best is None:
        low, best = _climb(probe, value, low, high)
        if best is None:
            return None
    while best.bottleneck * (1 - TOLERANCE) > low and time.perf_counter() < deadline:
        limit = (low + best.bottleneck) / 2
        if proving:
            limit = best.bottleneck * (1 - TOLERANCE)
        stages = probe(limit)
        reached = math.inf if stages is None else value(stages)
        if reached is None:
            break
        if stages is not None and reached < best.bottleneck:
            best = Found(reached, low, stages)
            proving = False
        else:
            low = limit
            proving = True
    proven = best.bottleneck * (1 - TOLERANCE) <= low
    return best._replace(lower_bound=best.bottleneck if proven else low)


def _climb(
    probe: Callable[[float], tuple[S, ...] | None],
    value: Callable[[tuple[S, ...]], float | None],
    low: float,
    high: float,
) -> tuple[float, Found[S] | None]:
    """From `low` upwards in growing steps, to the first bottleneck that can be kept."""
    growth = 1.125
    while True:
        limit = min(low * growth, high) if low > 0 else high
        stages = probe(limit)
        reached = None if stages is None else value(stages)
        if stages is not None and reached is not None:
            return low, Found(reached, low, stages)
        if limit == high:
            return low, None
        low, growth = limit, growth * growth
