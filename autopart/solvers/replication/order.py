"""Stages with a replica count each along one order of the layers, for loads that add up over layers.

Symbols   0 … N-1  states: the prefixes of the order;  c  a choice, key_c its busy time up to a state
          T, n     a bottleneck, and the machines
          A(b, c)  the states at which a stage of choice b may end and one of choice c start within T

On a chain of states the stage before wants to end as early as it can: of two places at which the rest
can be cut off, the earlier one leaves less ahead. So for m machines behind and the choice b ahead,
one state is enough:

    S(m, b) = the first state in A(b, c) from which a stage of choice c, up to S(m - c's machines, c),
              keeps T and fits into memory;  the smallest over c

and T can be kept if, for some c and m, the first stage reaches S(m, c) from the empty state. Busy times
and stashes grow with the stage, so the earliest start is found by bisection: O(n³ log N) for one T.
"""

from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np

from autopart.solvers.replication.downsets import Costs, stashes
from autopart.solvers.replication.dual import Flags, Stage

FIRST = -1
"""The choice of the first stage, of which no send is known before it is chosen."""


@dataclass(slots=True)
class OrderProbe:
    """`fewest_machines` over the prefixes of an order: call it with a bottleneck in seconds."""

    costs: Costs
    machines: int
    keys: list[list[float]] = field(init=False)
    stash: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.keys = [choice.key.tolist() for choice in self.costs.choices]
        memory = self.costs.memory
        self.stash = [] if memory is None else memory.key.tolist()

    def __call__(self, limit: float) -> tuple[Stage, ...] | None:
        """Stages that keep within `limit` seconds; None where the machines are not enough."""
        return _Sweep(self, limit).stages()


class _Sweep:
    """S(m, b) for one bottleneck, and the stage behind each."""

    def __init__(self, probe: OrderProbe, limit: float) -> None:
        self.probe, self.limit = probe, limit
        costs = probe.costs
        self.last = costs.num_states - 1
        self.starts = [choice.receive <= limit for choice in costs.choices]
        self.ends = [choice.send <= limit for choice in costs.choices]
        self.ends.append(np.logical_or.reduce([c.first_send <= limit for c in costs.choices]))
        self.machines_ahead = costs.machines_ahead(limit).tolist()
        self.allowed: dict[tuple[int, int], list[int]] = {}
        self.behind: dict[tuple[int, int], tuple[int, Stage]] = {}
        """For (m, b): the machines behind the stage that starts at S(m, b), and that stage."""

    def stages(self) -> tuple[Stage, ...] | None:
        """The stages of the smallest m, or None."""
        for later in range(self.probe.machines + 1):
            if later:
                self._extend(later)
            found = self._with_first_stage(later)
            if found is not None:
                return found
        return None

    def _start(self, later: int, ahead: int) -> int | None:
        if later == 0:
            return self.last
        found = self.behind.get((later, ahead))
        return None if found is None else found[1].start

    def _extend(self, total: int) -> None:
        """S(total, b) for every b that machines are left for."""
        left = self.probe.machines - total
        taken = self.probe.costs.machines
        ahead = [b for b, machines in enumerate(taken) if machines <= left]
        if not ahead:
            return
        for choice, machines in enumerate(taken):
            end = self._start(total - machines, choice) if machines <= total else None
            if end is None:
                continue
            earliest = self._earliest(choice, end, total - machines)
            for b in (*ahead, FIRST):
                start = self._next(b, choice, earliest)
                best = self._start(total, b)
                if start >= end or self.machines_ahead[start] > left:
                    continue
                if best is None or start < best:
                    self.behind[total, b] = (total - machines, Stage(start, end, choice))

    def _earliest(self, choice: int, end: int, later: int) -> int:
        key = self.probe.keys[choice]
        start = bisect_left(key, key[end] - self.limit, hi=end)
        memory = self.probe.costs.memory
        held = stashes(later, self.probe.costs.machines[choice])
        if memory is not None and held:
            stash = self.probe.stash
            start = bisect_left(stash, stash[end] - memory.limit / held, lo=start, hi=end)
        return max(start, 1)

    def _next(self, ahead: int, choice: int, earliest: int) -> int:
        """The first state in A(ahead, choice) from `earliest` on; the last one where there is none."""
        states = self.allowed.get((ahead, choice))
        if states is None:
            both: Flags = self.ends[ahead] & self.starts[choice]
            states = self.allowed[ahead, choice] = np.flatnonzero(both).tolist()
        at = bisect_left(states, earliest)
        return states[at] if at < len(states) else self.last

    def _with_first_stage(self, later: int) -> tuple[Stage, ...] | None:
        costs = self.probe.costs
        for choice, machines in enumerate(costs.machines):
            if machines + later > self.probe.machines:
                continue
            for ahead in (choice, FIRST):
                end = self._start(later, ahead)
                if end is None:
                    continue
                first = Stage(0, end, choice)
                if costs.load(first) <= self.limit and costs.fits(first, later):
                    return (first, *self._rest(later, ahead))
        return None

    def _rest(self, later: int, ahead: int) -> tuple[Stage, ...]:
        found: list[Stage] = []
        while later:
            later, stage = self.behind[later, ahead]
            found.append(stage)
            ahead = stage.choice
        return tuple(found)
