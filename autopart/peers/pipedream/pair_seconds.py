"""Stage seconds for all pairs of nested downsets, as flags over [choice, end, start]."""

from typing import Literal

import numpy as np

from autopart.peers.pipedream.charges import stashed_minibatches
from autopart.peers.pipedream.downset_costs import DownsetCosts
from autopart.solvers.fewest_ranks import TOLERANCE, Flags, Floats, Ints

StageKinds = Literal["all", "first", "later"]
"""Stages from the empty downset as first stages and all others as later ones, or only one kind.

`first` and `later` take any downset as a start, and ignore the layers ahead of it.
"""


class PairSeconds:
    """Stage costs with the nesting of their downsets: the form that `fewest_ranks` asks for."""

    def __init__(self, costs: DownsetCosts, nested: Flags, stages: StageKinds = "all") -> None:
        """`nested` holds flags at [end, start], see `nesting`."""
        choices = costs.choices
        free = np.zeros(costs.num_downsets)
        if stages == "first":
            choices = [c._replace(key=c.first, receive=free, send=c.first_send) for c in choices]
        if stages != "all":
            # Layers ahead of a stage then belong to another search: they ask for no machines here.
            costs = DownsetCosts(choices, free, costs.memory)
        self.costs, self.nested, self.stages = costs, nested, stages
        self.lowest_start = 0 if stages == "first" else 1
        self.ranks = costs.machines
        self.num_downsets = costs.num_downsets
        self.seconds_of = costs.seconds_of
        self.ranks_ahead = costs.machines_ahead
        self.key = np.array([choice.key for choice in choices])
        self.first = np.array([choice.first - choice.first[0] for choice in choices])
        self.receive = np.array([choice.receive for choice in choices])
        self.send = np.array([choice.send for choice in choices])
        self.first_send = np.array([choice.first_send for choice in choices])
        # Keys and work need not grow along the list, but these running extremes do. They bound the
        # range of starts by binary search: before the first large enough `highest`, no key is large
        # enough.
        self.highest = np.maximum.accumulate(self.key, axis=1)
        self.lowest_work = np.minimum.accumulate(costs.work[::-1])[::-1]

    def reach(
        self, choices: Ints, limit: float, later: int, ends: Ints, room: Ints
    ) -> tuple[int, Flags]:
        """See `StageSeconds.reach`."""
        # Step 1: a start needs a key within `limit` below the end's key, and at most the room's
        # work ahead.
        least = self.key[choices][:, ends] - limit
        begin = min(
            int(np.searchsorted(self.highest[choice], lowest))
            for choice, lowest in zip(choices.tolist(), least.min(axis=1).tolist(), strict=True)
        )
        most = room * limit * (1 + TOLERANCE)
        end = int(np.searchsorted(self.lowest_work, most.max(), side="right"))
        begin = max(self.lowest_start, begin)
        span = slice(begin, max(begin, end))
        # Step 2: flags for the starts alone, then for pairs, then for memory.
        starts = self.receive[choices, span] <= limit
        starts &= self.costs.work[span] <= most[:, None]
        rows = self.key[choices, None, span] >= least[:, :, None]
        rows &= starts[:, None, :]
        rows &= (self.send[choices][:, ends] <= limit)[:, :, None]
        rows &= self.nested[ends, span]
        if self.costs.memory is not None:
            key = self.costs.memory.key
            rows &= (key[ends][:, None] - key[span]) <= self._stash_limit(choices, later)
        return begin, rows

    def first_reach(self, choices: Ints, limit: float, later: int, ends: Ints) -> Flags:
        """See `StageSeconds.first_reach`."""
        if self.stages != "all":
            return np.zeros((len(choices), len(ends)), dtype=bool)
        flags = (self.first[choices][:, ends] <= limit) & (ends > 0)
        flags &= self.first_send[choices][:, ends] <= limit
        if self.costs.memory is not None:
            key = self.costs.memory.key
            flags &= (key[ends] - key[0]) <= self._stash_limit(choices, later)[:, :, 0]
        return flags

    def _stash_limit(self, choices: Ints, later: int) -> Floats:
        """Bytes per minibatch in flight at [choice, 1, 1], to compare with [choice, end, start]."""
        assert self.costs.memory is not None
        stashes = np.array(
            [stashed_minibatches(later, self.ranks[choice]) for choice in choices.tolist()]
        )
        with np.errstate(divide="ignore"):
            return (self.costs.memory.limit / stashes)[:, None, None]
