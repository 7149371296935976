"""Long paths through the orders of a named schedule, for a lower bound on its step.

The orders of a named schedule are known. So every chain of waits through them is too: an action waits for the one before
it on its rank, and for the result that it awaits. A step takes at least the seconds of all actions along such a path.
This is a sum over stages: how often the path has F, I or W of the stage, times its seconds. Sends, syncs and waits for
copies only add to it.

A path is sought for each rank: the longest one where the actions of that rank take some share longer. Any path would do
for a bound.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.records.layouts import Layout
from autopart.schedules.catalogue import make_schedule
from autopart.schedules.encoding import OPS, Actions, B, F, I, W, encode
from autopart.schedules.rounds import rounds
from autopart.stopping.time_limit import check_time

MOST_ACTIONS = 20_000
"""Actions in a step of one replica up to which paths are sought: a tenth of a second for each search."""

Numbers = npt.NDArray[np.float64]


class ActionSeconds(NamedTuple):
    """Seconds of each stage in F, in I (or in the whole backward without W) and in W, shape (stages,)."""

    forward: Numbers
    gradient: Numbers
    weights: Numbers


class OrderPaths(NamedTuple):
    """How often paths run the actions of each stage, shape (paths, stages)."""

    forward: Numbers
    gradient: Numbers
    """I, or the whole backward."""
    weights: Numbers
    """W, or the whole backward."""
    ends: Numbers
    """1 where the path ends on the rank of a stage, else 0."""
    actions: Numbers
    """All actions, shape (paths,)."""


class OrderGraph:
    """The actions of a named schedule and their waits, for one replica."""

    def __init__(self, layout: Layout) -> None:
        """`layout` has one replica, and no overlapped pairs."""
        orders = make_schedule(layout.schedule, layout.stage_ranks, layout.num_microbatches)
        self.actions: Actions = encode(orders, len(layout.stage_ranks))
        self.rank_of_stage = np.array([ranks[0] for ranks in layout.stage_ranks])
        none, first = self.actions.num_actions, self.actions.first[:-1]
        self.before = np.arange(-1, none - 1)
        self.before[[at for at in first if at < none]] = none
        self.need = np.minimum(self.actions.need, none)
        # Actions of one round wait for earlier rounds only.
        turn = rounds(self.actions)
        self.together = np.split(
            np.argsort(turn, kind="stable"), np.cumsum(np.bincount(turn)[1:])[:-1]
        )

    def longest(self, seconds: ActionSeconds, share: float) -> OrderPaths:
        """A long path for each rank, where its own actions take `share` longer; twice the same one counts once."""
        actions, ranks = self.actions, int(self.rank_of_stage.max()) + 1
        per_kind = np.zeros((len(seconds.forward), len(OPS)))
        per_kind[:, F], per_kind[:, I], per_kind[:, W] = seconds
        per_kind[:, B] = seconds.gradient + seconds.weights
        each = per_kind.ravel()[actions.kind]
        longer = 1.0 + share * (actions.rank[:, None] == np.arange(ranks)[None, :])
        # Entry `none` stands for an action that nothing precedes.
        none = actions.num_actions
        ended = np.zeros((none + 1, ranks))
        came = np.full((none + 1, ranks), none)
        for some in self.together:
            check_time()
            here, there = self.before[some], self.need[some]
            later = ended[there] > ended[here]
            came[some] = np.where(later, there[:, None], here[:, None])
            start = np.where(later, ended[there], ended[here])
            ended[some] = start + each[some, None] * longer[some]
        return self._counted(came, ended.argmax(axis=0))

    def _counted(self, came: npt.NDArray[np.int64], last: npt.NDArray[np.int64]) -> OrderPaths:
        """The actions of each path, from its last one back."""
        stages, none = len(self.rank_of_stage), self.actions.num_actions
        counts = np.zeros((len(last), stages * len(OPS)))
        for path, end in enumerate(last.tolist()):
            at = end
            while at != none:
                counts[path, self.actions.kind[at]] += 1
                at = int(came[at, path])
        _, first = np.unique(counts, axis=0, return_index=True)
        first.sort()
        each, last = counts[first].reshape(len(first), stages, len(OPS)), last[first]
        return OrderPaths(
            forward=each[:, :, F],
            gradient=each[:, :, B] + each[:, :, I],
            weights=each[:, :, B] + each[:, :, W],
            ends=(self.actions.rank[last][:, None] == self.rank_of_stage[None, :]).astype(float),
            actions=each.sum(axis=(1, 2)),
        )
