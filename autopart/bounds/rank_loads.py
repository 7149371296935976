"""Refuting a step for every partition of a layout, with all stages of a rank counted together.

The bounds of autopart/bounds/any_order_stages.py count each stage alone. Here a rank has several
stages, and layers are never split. Stages are added from the first one on. A *beginning* is known by
its last cut and by three numbers for each rank, which only grow:

    L    (1) in autopart/bounds/any_order_formulas.py over the rank's stages so far, or (2) where no
         layer has weight gradients of its own. Rows that begin with a later stage count too:
         L becomes max(L, start of the stage) + work of the stage
    M    G - e + all work + E                                                                 (19)
    N    G - e + all work + E + (K - E - c)                                                   (20)

G is the first gradient's arrival on the rank's last stage, (H + f + U + D)(z). K is the path from the
rank's last F to the step's end, (U + D + i + R)(z). Memory limits two sums of work:

    e    F on the rank before its first backward:  at most p room + sum n max(0, f - p stash)
    c    I, W and B on it behind its last F:       at most q room + sum n max(0, i + w - q stash,
                                                   w - q waiting bytes)

for any p, q >= 0: in-flight microbatches keep at least the stash that policies leave. So the rank is idle
for G - e at least before its first backward, and for K - E - c behind its last F. (20) needs both times
apart: where n microbatches do not fit on stage z alone, some F waits for a backward.

A beginning is dropped where L, M or N reach the value, and where the work that is left does not fit
into what all ranks have left. Beginnings with one cut and nearly equal numbers are joined. The smaller
numbers count, so no partition is lost. Where no beginning is left, no partition takes less than the
value.
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.activations.shared_totals import freest_totals
from autopart.bounds.any_order_formulas import AnyOrderPath, any_order_path
from autopart.bounds.microbatch_path import LayoutPaths, Mask, Matrix, always_sent, step_ends
from autopart.cost.cuts import Cuts
from autopart.cost.in_flight import one_in_flight
from autopart.cost.memory import memory, total
from autopart.cost.on_ranks import on_ranks
from autopart.cost.repeated_ties import least_on_ranks, without_shared_state
from autopart.cost.stage_syncs import time_after_backward
from autopart.cost.stage_times import cut_links
from autopart.cost.sync_rules import RULES
from autopart.cost.syncs import sync_price
from autopart.cost.tied_syncs import without_shared_ties
from autopart.records.cluster import smallest_memory
from autopart.records.layouts import Layout, own_microbatches
from autopart.records.problem import Problem
from autopart.stopping.time_limit import check_time

WIDTH = 10_000
"""The most beginnings that go on from one stage to the next; more are joined."""

MOST_STAGES = 1_500_000
"""The most next stages that are looked at for all beginnings together."""
FINEST = 1e-4
"""L in one beginning and another are nearly equal within this share of the value."""
FINEST_TOTAL = 1e-5
"""The same for M, which tells the work of the ranks apart."""

Numbers = npt.NDArray[np.float64]
"""L, M and N of each rank in columns, then seconds for sends; shape (beginnings, 3 ranks + 1)."""
Places = npt.NDArray[np.int64]
"""Cuts, one for each beginning."""


class _Stage(NamedTuple):
    """One stage of the layout for every [i, j], shape (N, N)."""

    group: int
    """The place of its ranks among all groups of ranks."""
    start: Matrix
    """The least seconds with which a row that begins here starts, without earlier sends."""
    sends: Matrix
    """Seconds that the sends over the cut ahead add to the starts of all later stages."""
    work: Matrix
    """Seconds in L."""
    once: Matrix
    """Seconds in M; `twice` has those in N."""
    twice: Matrix


class RankLoads:
    """All stages of one layout, whose stages run on equal groups of ranks."""

    def __init__(self, problem: Problem, layout: Layout, cuts: Cuts, *, split: bool) -> None:
        self.problem, self.layout, self.cuts, self.split = problem, layout, cuts, split
        self._freest = least_on_ranks(layout, freest_totals(problem, layout, cuts))
        groups: dict[tuple[int, ...], list[int]] = {}
        for stage, ranks in enumerate(layout.stage_ranks):
            groups.setdefault(tuple(sorted(ranks)), []).append(stage)
        self.groups = list(groups.values())
        self._group_of = [[*groups].index(tuple(sorted(own))) for own in layout.stage_ranks]
        self._whole = not (split and bool(np.any(cuts.totals.weight_grad_time > 0)))
        """Whether no backward is split, so that (2) says more than (1)."""

    def refutes(self, seconds: float, stages: list[Matrix]) -> bool:
        """Whether no partition takes less than so many seconds under any order.

        `stages` bounds every [i, j] in each stage's place. False where a partition may be faster, and
        where the beginnings are too many to tell.
        """
        may = _leading_to_the_end([bound < seconds for bound in stages])
        count, seen = len(self.groups), 0
        cut: Places = np.zeros(1, dtype=np.int64)
        numbers: Numbers = np.zeros((1, 3 * count + 1))
        for at, (stage, allowed) in enumerate(zip(self._stages, may, strict=True)):
            check_time()
            # Step 1: each beginning goes on with each stage that is allowed.
            rows, end = np.nonzero(allowed[cut])
            seen += len(rows)
            if seen > MOST_STAGES:
                return False
            numbers = _with_stage(numbers[rows], stage, cut[rows], end)
            # Step 2: drop those that reach the value, or leave too little room for the rest.
            below = (_of_group(numbers, stage.group) < seconds).all(axis=1)
            left = self._least_left[at + 1][end]
            below &= numbers[:, :count].sum(axis=1) + left < count * seconds
            cut, numbers = end[below], numbers[below]
            if len(cut) == 0:
                return True
            # Step 3: join beginnings that are nearly equal.
            cut, numbers = _joined(cut, numbers, seconds)
        return False

    @functools.cached_property
    def _stages(self) -> list[_Stage]:
        """All stages of the layout."""
        problem, layout, cuts = self.problem, self.layout, self.cuts
        # A send counts only where every microbatch needs it.
        links = [
            link if always_sent(here, there, layout.num_microbatches) else None
            for link, (here, there) in zip(
                cut_links(problem.cluster, layout.stage_ranks),
                itertools.pairwise(layout.stage_ranks),
                strict=True,
            )
        ]
        paths = LayoutPaths(problem, layout, cuts, links, split=self.split)
        return [self._stage(stage, paths) for stage in range(len(layout.stage_ranks))]

    def _stage(self, stage: int, paths: LayoutPaths) -> _Stage:
        problem, layout, group = self.problem, self.layout, self._group_of[stage]
        totals = on_ranks(self.cuts.totals, problem, layout, stage)
        weights = totals.weight_grad_time if self.split else 0.0 * totals.backward_time
        own_end, first_end = step_ends(self._end, stage)
        if RULES[problem.training.sync].sums_early:
            own_end = totals.update_time  # Syncs may overlap the rank's other stages.
        around = paths.around(stage, totals)
        path = any_order_path(
            around,
            weights,
            (weights if stage == 0 else 0.0) + first_end,
            sends_overlap=problem.cluster.sends_overlap,
        )
        # L, by (2) or (1). Other cuts' sends are counted once they are known.
        n = own_microbatches(layout, stage)
        gradients = n * (path.forward + path.send + path.gradient + path.send_back)
        everything = gradients + n * path.weights + own_end
        if self._whole:
            start = path.arrival + path.departure - path.send_back
            start = start - around.sends_before - around.sends_after
            sends, work = around.receive + around.send_back, gradients
        else:
            start = path.arrival - around.sends_before
            sends, work = around.receive, everything
        once, twice = self._kept(path, own_end, n)
        if stage == self.groups[group][0]:
            forward, backward, room = self._per_byte_and_room(stage)
            once, twice = once - forward * room, twice - (forward + backward) * room
        if stage == self.groups[group][-1]:
            first = path.arrival + path.forward + path.turnaround
            last = path.turnaround - path.send + path.gradient + path.departure
            room = self._per_byte_and_room(stage)[2]
            apart = n * self._freest.stash_bytes > room - self._bytes[0]
            once = once + first
            twice = np.where(apart, twice + first + last, -np.inf)
        return _Stage(group, *(self._full(each) for each in (start, sends, work, once, twice)))

    def _kept(self, path: AnyOrderPath[Matrix], own_end: Matrix, n: int) -> tuple[Matrix, Matrix]:
        """What a stage adds to M and N, without room, G and K."""
        forward, backward = self._per_byte
        stash = self._freest.stash_bytes
        waiting = self.cuts.totals.waiting_bytes if self.split else stash
        f, i, w = path.forward + path.send, path.gradient + path.send_back, path.weights
        # n f - n max(0, f - p stash), and the same for c.
        slow = n * np.minimum(f, forward * stash) + forward * self._bytes[0]
        late = np.minimum(i + w, np.minimum(backward * stash, i + backward * waiting))
        once = slow + n * (i + w) + own_end
        return once, slow + n * late + backward * self._bytes[0]

    def _end(self, stage: int) -> Matrix:
        """Sync and update for every [i, j]; tied parameters' syncs come on top and are left out."""
        problem, ranks = self.problem, self.layout.stage_ranks[stage]
        totals = on_ranks(self.cuts.totals, problem, self.layout, stage)
        own = without_shared_ties(problem, self.cuts, totals)
        price = sync_price(problem.cluster, ranks, problem.training)
        return time_after_backward(problem, own, price, len(ranks), stage=stage, split=self.split)

    def _full(self, seconds: Matrix | float) -> Matrix:
        return np.broadcast_to(np.asarray(seconds, dtype=np.float64), self.cuts.nested.shape)

    @functools.cached_property
    def _bytes(self) -> tuple[Matrix, float]:
        """Bytes that do not change within a step, and the smallest workspace of a stage in F."""
        once = without_shared_state(self.problem, self.layout, self.cuts, self._freest)
        use = memory(once, self.problem, len(self.layout.stage_ranks[0]), one_in_flight())
        moving = use.stash + use.workspace + use.receives + use.sends + use.reserve
        workspace = self._full(use.workspace)[self.cuts.nested]
        return self._full(total(use) - moving), float(workspace.min(initial=0.0))

    def _per_byte_and_room(self, stage: int) -> tuple[float, float, float]:
        """p, q, and the bytes of the stage's ranks beside what lasts."""
        cluster, ranks = self.problem.cluster, self.layout.stage_ranks[stage]
        room = smallest_memory(cluster, ranks) - cluster.reserve_bytes - self._bytes[1]
        return *self._per_byte, room

    @functools.cached_property
    def _per_byte(self) -> tuple[float, float]:
        """p and q: the median of all stages. Any number gives a bound."""
        totals, nested = self.cuts.totals, self.cuts.nested
        stash = self._full(self._freest.stash_bytes)
        some = nested & (stash > 0)
        if not some.any():
            return 0.0, 0.0
        each = [self._full(t)[some] for t in (totals.forward_time, totals.backward_time)]
        return tuple(float(np.median(seconds / stash[some])) for seconds in each)  # pyright: ignore

    @functools.cached_property
    def _least_left(self) -> list[npt.NDArray[np.float64]]:
        """For each number of stages and each cut, the least that the others add to all L's sum."""
        first = {own[0] for own in self.groups}
        left = np.full(len(self.cuts.nested), np.inf)
        left[-1] = 0.0
        found = [left]
        for at in reversed(range(len(self._stages))):
            stage = self._stages[at]
            seconds = stage.work + (stage.start if at in first else 0.0)
            left = np.where(self.cuts.nested, seconds + left[None, :], np.inf).min(axis=1)
            found.append(left)
        return found[::-1]


def _leading_to_the_end(allowed: list[Mask]) -> list[Mask]:
    """The stages from which the others can go on to the last cut."""
    ends = np.zeros(allowed[0].shape[0], dtype=bool)
    ends[-1] = True
    kept: list[Mask] = []
    for each in reversed(allowed):
        kept.append(each & ends[None, :])
        ends = np.logical_or.reduce(kept[-1], axis=1)
    return kept[::-1]


def _of_group(numbers: Numbers, group: int) -> Numbers:
    """L, M and N of one group."""
    count = numbers.shape[1] // 3
    return numbers[:, group : 3 * count : count]


def _with_stage(numbers: Numbers, stage: _Stage, start: Places, end: Places) -> Numbers:
    """The numbers of beginnings that go on with a stage [start, end]."""
    own, sent = _of_group(numbers, stage.group), numbers[:, -1]
    # An inner row starts behind all sends so far.
    own[:, 0] = np.maximum(own[:, 0], stage.start[start, end] + sent) + stage.work[start, end]
    own[:, 1] += stage.once[start, end]
    own[:, 2] += stage.twice[start, end]
    sent += stage.sends[start, end]
    return numbers


def _joined(cut: Places, numbers: Numbers, seconds: float) -> tuple[Places, Numbers]:
    """The smallest numbers of beginnings that are nearly equal: at most `WIDTH` of them, or one per cut."""
    count, near, near_total = numbers.shape[1] // 3, FINEST, FINEST_TOTAL
    loads, totals = numbers[:, :count] / seconds, numbers[:, count : 2 * count] / seconds
    while True:
        cells = np.floor(np.hstack([loads / near, totals / near_total])).astype(np.int64)
        key = _keys(cut, cells)
        order = np.argsort(key, kind="stable")
        ordered = key[order]
        firsts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        if len(firsts) <= WIDTH or not cells.any():
            return cut[order][firsts], np.minimum.reduceat(numbers[order], firsts, axis=0)
        # The work of the ranks tells more than the time at which they started.
        near *= 2
        if near > 0.01:
            near_total *= 4


def _keys(cut: Places, cells: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """A number for each cut and cells. Equal numbers by accident only join more beginnings."""
    hashed = np.zeros(len(cut), dtype=np.uint64)
    for column in cells.T:
        hashed = (hashed ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        hashed ^= hashed >> np.uint64(29)
    return (cut.astype(np.uint64) << np.uint64(50)) | (hashed >> np.uint64(14))
