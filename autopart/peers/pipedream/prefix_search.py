"""Stages with a replica count each along one order of the layers, for seconds that add up over
layers.

Symbols   0 … N-1  downsets: the order's prefixes;  c  a choice, key_c its busy time up to a downset
          T, n     a bottleneck, and the machines
          A(b, c)  downsets at which a stage under choice b may end and one under c start within T

On a chain of downsets the stage ahead wants to end as early as possible: an earlier end leaves less
work ahead. So one downset is enough for m machines behind and the choice b ahead:

    S(m, b) = the first downset in A(b, c) from which a stage under c, up to S(m - c's machines, c),
              keeps T and fits into memory;  the smallest over c

T can be kept if, for some c and m, the first stage reaches S(m, c) from the empty downset. Busy
times and stashes grow with the stage, so bisection finds the earliest start: O(n³ log N) for one T.
"""

from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np

from autopart.peers.pipedream.charges import stashed_minibatches
from autopart.peers.pipedream.downset_costs import DownsetCosts
from autopart.solvers.fewest_ranks import DownsetStage, Flags
from autopart.stopping.time_limit import check_time

FIRST = -1
"""Stands for the first stage's choice, which is not known yet while S is computed."""


@dataclass(slots=True)
class PrefixSearch:
    """`fewest_ranks` over an order's prefixes; call it with a bottleneck in seconds."""

    costs: DownsetCosts
    machines: int
    """Machines in all."""
    keys: list[list[float]] = field(init=False)
    """For each choice its key as a list, for bisection."""
    stash: list[float] = field(init=False)
    """The memory key as a list; empty without a memory limit."""

    def __post_init__(self) -> None:
        self.keys = [choice.key.tolist() for choice in self.costs.choices]
        memory = self.costs.memory
        self.stash = [] if memory is None else memory.key.tolist()

    def __call__(self, limit: float) -> tuple[DownsetStage, ...] | None:
        """Stages within `limit` seconds, or None where the machines are too few."""
        return _Sweep(self, limit).stages()


class _Sweep:
    """S(m, b) for one bottleneck, and the stage behind each."""

    def __init__(self, search: PrefixSearch, limit: float) -> None:
        self.search, self.limit = search, limit
        costs = search.costs
        self.last = costs.num_downsets - 1
        self.starts = [choice.receive <= limit for choice in costs.choices]
        self.ends = [choice.send <= limit for choice in costs.choices]
        self.ends.append(np.logical_or.reduce([c.first_send <= limit for c in costs.choices]))
        self.machines_ahead = costs.machines_ahead(limit).tolist()
        self.allowed: dict[tuple[int, int], list[int]] = {}
        self.behind: dict[tuple[int, int], tuple[int, DownsetStage]] = {}
        """For (m, b): the machines behind the stage that starts at S(m, b), and that stage."""

    def stages(self) -> tuple[DownsetStage, ...] | None:
        """The stages for the smallest m, or None."""
        for later in range(self.search.machines + 1):
            check_time()
            if later:
                self._extend(later)
            found = self._with_first_stage(later)
            if found is not None:
                return found
        return None

    def _start(self, later: int, ahead: int) -> int | None:
        """S(later, ahead), or None where there is none."""
        if later == 0:
            return self.last
        found = self.behind.get((later, ahead))
        return None if found is None else found[1].start

    def _extend(self, total: int) -> None:
        """S(total, b) for every b that machines are left for."""
        left = self.search.machines - total
        taken = self.search.costs.machines
        ahead = [b for b, machines in enumerate(taken) if machines <= left]
        if not ahead:
            return
        for choice, machines in enumerate(taken):
            # Step 1: the stage ends where the machines behind it begin.
            end = self._start(total - machines, choice) if machines <= total else None
            if end is None:
                continue
            # Step 2: it starts as early as time and memory allow.
            earliest = self._earliest(choice, end, total - machines)
            # Step 3: for each choice ahead, the first allowed start from there on, if it beats the
            # known one.
            for b in (*ahead, FIRST):
                start = self._next(b, choice, earliest)
                best = self._start(total, b)
                if start >= end or self.machines_ahead[start] > left:
                    continue
                if best is None or start < best:
                    self.behind[total, b] = (total - machines, DownsetStage(start, end, choice))

    def _earliest(self, choice: int, end: int, later: int) -> int:
        """The first downset from which a stage under `choice` up to `end` keeps time and memory."""
        key = self.search.keys[choice]
        start = bisect_left(key, key[end] - self.limit, hi=end)
        memory = self.search.costs.memory
        stashes = stashed_minibatches(later, self.search.costs.machines[choice])
        if memory is not None and stashes:
            stash = self.search.stash
            start = bisect_left(stash, stash[end] - memory.limit / stashes, lo=start, hi=end)
        return max(start, 1)

    def _next(self, ahead: int, choice: int, earliest: int) -> int:
        """The first downset in A(ahead, choice) from `earliest` on; the last downset where there is
        none."""
        downsets = self.allowed.get((ahead, choice))
        if downsets is None:
            both: Flags = self.ends[ahead] & self.starts[choice]
            downsets = self.allowed[ahead, choice] = np.flatnonzero(both).tolist()
        at = bisect_left(downsets, earliest)
        return downsets[at] if at < len(downsets) else self.last

    def _with_first_stage(self, later: int) -> tuple[DownsetStage, ...] | None:
        """A first stage that reaches some S(later, c), with the stages behind it, or None."""
        costs = self.search.costs
        for choice, machines in enumerate(costs.machines):
            if machines + later > self.search.machines:
                continue
            for ahead in (choice, FIRST):
                end = self._start(later, ahead)
                if end is None:
                    continue
                first = DownsetStage(0, end, choice)
                if costs.seconds_of(first) <= self.limit and costs.fits(first, later):
                    return (first, *self._rest(later, ahead))
        return None

    def _rest(self, later: int, ahead: int) -> tuple[DownsetStage, ...]:
        """The stages behind the first one."""
        found: list[DownsetStage] = []
        while later:
            later, stage = self.behind[later, ahead]
            found.append(stage)
            ahead = stage.choice
        return tuple(found)
