"""Stages with a replica count each between all downsets in a graph, found along covers.

Symbols   D       a downset;  D ⊂ D' is a cover where D' has one layer more
          c       a choice with a key: stage D' - D is busy for key_c(D') - key_c(D) seconds
          T, G    a bottleneck, and the fewest machines behind a downset: fewest_ranks.py

With few downsets, all pairs are looked at as one boolean matrix (pair_seconds.py). With many, a
second recurrence along covers replaces the pairs, since busy times are differences. For m machines
behind and choice c,

    W(m, c, D) = min { key_c(D') :  D ⊊ D',  G(D') <= m,  D' may end a stage under c }
               = min over covers D'' of D of  min( W(m, c, D''), key_c(D'') if G(D'') <= m and ... )
    G(D)       = min { c's machines + m :  W(m, c, D) - key_c(D) <= T,  D may start a stage under c }

This is exact, since every D' ⊋ D contains a cover of D. It goes level by level, larger downsets
first: O(covers n²) for one T, instead of O(pairs n).
"""

import math
from dataclasses import dataclass, field

import numpy as np

from autopart.peers.pipedream.downset_costs import DownsetCosts
from autopart.peers.pipedream.downsets import Downsets, Level, levels
from autopart.solvers.fewest_ranks import DownsetStage, Flags, Floats, Ints
from autopart.stopping.time_limit import check_time


@dataclass(slots=True)
class CoverSearch:
    """`fewest_ranks` along covers, without a memory limit; call it with a bottleneck in seconds."""

    downsets: Downsets
    costs: DownsetCosts
    machines: int
    """Machines in all."""
    levels: list[Level] = field(init=False)
    total: Ints = field(init=False)
    """For each pair (machines behind, choice) the machines in both, ascending."""
    later: Ints = field(init=False)
    """Machines behind, for each pair."""
    option: Ints = field(init=False)
    """Choice, for each pair."""

    def __post_init__(self) -> None:
        assert self.downsets.covers is not None, "all downsets are needed"
        assert self.costs.memory is None, "two keys cannot be minimised at once"
        self.levels = levels(self.downsets)
        pairs = [
            (later + taken, later, choice)
            for choice, taken in enumerate(self.costs.machines)
            for later in range(self.machines - taken + 1)
        ]
        self.total, self.later, self.option = np.array(sorted(pairs)).T.copy()

    def __call__(self, limit: float) -> tuple[DownsetStage, ...] | None:
        """Stages within `limit` seconds, or None where the machines are too few."""
        choices = self.costs.choices
        key = np.stack([choice.key for choice in choices], axis=1)
        starts = np.stack([choice.receive <= limit for choice in choices], axis=1)
        ends = np.stack([choice.send <= limit for choice in choices], axis=1)
        room = self.machines - self.costs.machines_ahead(limit)
        nowhere = self.machines + 1
        needed = np.full(len(room), nowhere)
        needed[-1] = 0
        pairs = np.zeros(0, dtype=np.int64)
        least = np.empty((1, 0))
        for level in reversed(self.levels[:-1]):
            check_time()
            # Step 1: add the level above as possible ends, then take minima over covers.
            above = slice(level.end, level.end + len(least))
            pairs, least = self._with_ends(
                pairs, least, needed[above], key[above], ends[above], limit
            )
            least = np.minimum.reduceat(least[level.children], level.firsts, axis=0)
            # Step 2: a downset may start a stage where its key is within `limit` below the smallest
            # end.
            here = slice(level.begin, level.end)
            possible = least - key[here][:, self.option[pairs]] <= limit
            possible &= starts[here][:, self.option[pairs]]
            if len(pairs):
                # Step 3: pairs ascend by machines, so the first possible pair gives G.
                found = np.where(
                    possible.any(axis=1), self.total[pairs][possible.argmax(axis=1)], nowhere
                )
                needed[here] = np.where(found <= room[here], found, nowhere)
        return self._stages(limit, needed)

    def _with_ends(
        self, pairs: Ints, least: Floats, needed: Ints, key: Floats, ends: Flags, limit: float
    ) -> tuple[Ints, Floats]:
        """The columns of W on a level, with the level's own downsets as ends.

        W is kept for the exact number of machines behind. A pair has a column as long as a downset
        below may use it, since keys only shrink on the way down.
        """
        # Step 1: columns for the pairs so far, and for machine counts that are new on this level.
        counts = np.zeros(self.machines + 2, dtype=bool)
        counts[needed] = True
        new = np.flatnonzero(counts[self.later])
        columns = np.union1d(pairs, new)
        wide = np.full((len(least), len(columns)), math.inf)
        wide[:, np.searchsorted(columns, pairs)] = least
        # Step 2: each downset itself is an end, where G is exactly the column's count.
        own = key[:, self.option[columns]]
        usable = ends[:, self.option[columns]] & (needed[:, None] == self.later[columns])
        # Step 3: drop ends that are out of reach already here, then empty columns.
        wide[wide - own > limit] = math.inf
        wide = np.minimum(wide, np.where(usable, own, math.inf))
        alive = np.isfinite(wide).any(axis=0)
        return columns[alive], wide[:, alive]

    def _stages(self, limit: float, needed: Ints) -> tuple[DownsetStage, ...] | None:
        """Stages from the front, given the machines behind each downset except the first."""
        last = len(needed) - 1
        stages: list[DownsetStage] = []
        at, left = 0, self.machines
        while at != last:
            stage = self._stage_from(at, left, limit, needed)
            if stage is None:
                assert not stages, "what was counted can be built"
                return None
            stages.append(stage)
            at = stage.end
            left = int(needed[at])
        return tuple(stages)

    def _stage_from(self, at: int, left: int, limit: float, needed: Ints) -> DownsetStage | None:
        """A stage from downset `at`, with `left` machines for it and everything behind it, or None."""
        start = self.downsets.masks[at]
        # A scan over all ends: it runs once per stage, so it needs no covers.
        for number, choice in enumerate(self.costs.choices):
            if choice.machines > left or (at and choice.receive[at] > limit):
                continue
            key = choice.key if at else choice.first
            possible = (needed <= left - choice.machines) & (key - key[at] <= limit)
            possible &= (choice.send if at else choice.first_send) <= limit
            for end in np.flatnonzero(possible).tolist():
                if end > at and not start & ~self.downsets.masks[end]:
                    return DownsetStage(at, end, number)
        return None
