"""Bounds of every order for one partition on its ranks.

Symbols   f, i, w   forward, input-gradient and weight-gradient seconds of a stage, with fixed costs; where
                    backwards are whole, i is all of the backward and w = 0
          n         microbatches of a stage that one rank runs
          H         the way of a microbatch before its F on a stage: all f and sends ahead
          U, D      its way from behind that F to the last stage, and back until before its I (or B)
          R         its way from behind that I to stage 0, and then w, the syncs and update of stage 0
          a, z      the first and the last of the stages on a rank;  E its own syncs and updates

Nothing on a rank starts before H of a, every microbatch takes each hop, and the rank runs one action
after the other. No order, with any warmup, whole or split backwards, and any placement, beats

    all work of a rank, from the first arrival                H(a) + sum n (f + i + w) + E            (1)
    its input gradients, and the last one's way out           H(a) + sum n (f + i) + R(a)             (2)
    all its forwards, and the last one's way there and back   H(a) + sum n f + (U + D + i + R)(z)     (3)
    the first gradient's way in, and all its backwards        (H + f + U + D)(z) + sum n (i + w) + E  (4)
                                                              (H + f + U + D)(z) + sum n i + R(a)     (5)
    a link with q sends of c seconds: before the first, behind the last             … + sum q c + …   (6)

(3): no F of the rank is last but on some stage, and U + D + i + R is smallest on z. (4): no gradient
reaches a rank before one has come back to z. With room for y microbatches on a rank between F and the
end of W (or B), y = min(n, floor(room / stash of its stages up to this one)), where stash is the least that a
microbatch keeps, before I or behind it:

    the last F, behind n - y whole turns      H + n f + (n - y) (i + w) + U + D + i + R               (7)
    the first I, ahead of n - y forwards      H + f + U + D + n (i + w) + (n - y) f + E               (8)
                                              H + f + U + D + n i + (n - y) f + R                     (9)
    turns of y microbatches, n - 1 = q y + r  H + r max(f, g) + (q + 1) (f + U + D + i + w) + E      (10)
                                              H + r f + (q + 1) (f + U + D + i + w) - w + R          (11)
    bytes x seconds of a rank                 H(a) + sum n stash (f + U + D + i + w) / room + E      (12)

(10): number the F's by their starts and the backwards by their ends, each from 0. F y + j starts when j + 1
backwards have ended, and backward j ends a stay, f + U + D + i + w, after F j has started; F's are f
apart and ends g, which is i, or w where backwards are split. So a stay over y is a memory-bound period.
Where sends do not overlap compute, a receive is part of f and i, and a send keeps its rank busy behind
them, while its result goes on: all of it counts in a sum over a rank, the last one's not on its way out.
`least_step` takes the largest.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from autopart.schedule import StageRanks, dealt, rank_of
from autopart.simulator.costs import StageCosts
from autopart.simulator.syncs import SyncCost


class OrderProblem(NamedTuple):
    """A partition on its ranks, whose actions are to be put in order."""

    stages: Sequence[StageCosts]
    stage_ranks: StageRanks
    """For each stage its ranks; a rank may stand in several stages."""
    num_microbatches: int
    syncs: Sequence[SyncCost] = ()
    action_overhead: float = 0.0
    sends_overlap: bool = True
    split: bool = False
    """Whether backwards may be split into I and W."""
    stash_bytes: Sequence[int] = ()
    """For each stage, kept for one microbatch from F to B or I."""
    waiting_bytes: Sequence[int] = ()
    """For each stage, kept from I to W; `stash_bytes` where it is not said."""
    room_bytes: Sequence[int] | None = None
    """For each rank, what is left for the stash; None where memory is not asked."""

    def least_kept(self, stage: int) -> int:
        """What every microbatch surely keeps of a stage from its F to the end of its backward."""
        return min(self._kept(stage))

    def most_kept(self, stage: int) -> int:
        """The most that one microbatch ever keeps of a stage."""
        return max(self._kept(stage))

    def _kept(self, stage: int) -> tuple[int, int]:
        stash = self.stash_bytes[stage]
        return stash, self.waiting_bytes[stage] if self.split and self.waiting_bytes else stash


class Ways(NamedTuple):
    """The way of one microbatch through the stages; seconds, one entry a stage."""

    forward: list[float]
    """f up to its result; where sends do not overlap, with the receive before."""
    gradient: list[float]
    """i likewise."""
    sent: list[float]
    """What f keeps the rank busy after its result, where sends do not overlap."""
    sent_back: list[float]
    """What i does."""
    weights: list[float]
    """w."""
    before: list[float]
    """H."""
    around: list[float]
    """U + D."""
    out: list[float]
    """R."""


def least_step(task: OrderProblem) -> float:
    """Seconds that no order can beat, by (1)-(12); infinite where one microbatch does not fit."""
    ways, after = _ways(task), _after(task)
    bounds = [_way_of_one(ways), *_links(task, ways)]
    for rank, own in _stages_on(task).items():
        bounds += _work_of_rank(task, ways, rank, own, after[rank])
        if task.room_bytes is not None:
            bounds += _full_rank(task, ways, rank, own, after[rank], task.room_bytes[rank])
    return max(bounds)


def stays(task: OrderProblem) -> list[float]:
    """For each stage, the least seconds from the start of a microbatch's F to the end of its backward."""
    ways = _ways(task)
    return [_stay(ways, stage) for stage in range(len(task.stages))]


def _stages_on(task: OrderProblem) -> dict[int, list[int]]:
    """The stages of each rank in use."""
    found: dict[int, list[int]] = {}
    for stage, ranks in enumerate(task.stage_ranks):
        for rank in ranks:
            found.setdefault(rank, []).append(stage)
    return found


def _always_sent(task: OrderProblem, stage: int) -> bool:
    """Whether every microbatch changes its rank behind `stage`."""
    here, there = task.stage_ranks[stage : stage + 2]
    return all(rank_of(here, m) != rank_of(there, m) for m in range(task.num_microbatches))


def _ways(task: OrderProblem) -> Ways:
    stages, overhead, k = task.stages, task.action_overhead, len(task.stages)
    sent = [_always_sent(task, stage) for stage in range(k - 1)]
    down = [s.send_time if there else 0.0 for s, there in zip(stages, sent, strict=False)]
    back = [s.send_back_time if there else 0.0 for s, there in zip(stages[1:], sent, strict=True)]
    forward = [s.forward_time + overhead for s in stages]
    weights = [s.weight_grad_time if task.split else 0.0 for s in stages]
    gradient = [s.backward_time + overhead - w for s, w in zip(stages, weights, strict=True)]
    busy, busy_back = [0.0] * k, [0.0] * k
    if not task.sends_overlap:
        busy, busy_back = [*down, 0.0], [0.0, *back]
        forward[1:] = [f + c for f, c in zip(forward[1:], down, strict=True)]
        gradient[:-1] = [i + c for i, c in zip(gradient[:-1], back, strict=True)]
        down = back = [0.0] * (k - 1)
    before, around, out = (
        [0.0],
        [0.0],
        [weights[0] + min(_after(task)[r] for r in task.stage_ranks[0])],
    )
    for stage in range(k - 1):
        before.append(before[-1] + forward[stage] + down[stage])
        out.append(out[-1] + gradient[stage] + back[stage])
    for stage in reversed(range(k - 1)):
        inner = forward[stage + 1] + gradient[stage + 1]
        around.insert(0, around[0] + inner + down[stage] + back[stage])
    return Ways(forward, gradient, busy, busy_back, weights, before, around, out)


def _after(task: OrderProblem) -> dict[int, float]:
    """E of each rank in use."""
    return {
        rank: sum(task.stages[stage].update_time for stage in own)
        + sum(sync.time for sync in task.syncs if rank in sync.ranks)
        for rank, own in _stages_on(task).items()
    }


def _way_of_one(ways: Ways) -> float:
    return ways.forward[0] + ways.around[0] + ways.gradient[0] + ways.out[0]


def _work_of_rank(
    task: OrderProblem, ways: Ways, rank: int, own: Sequence[int], after: float
) -> list[float]:
    """(1)-(5); a rank that is dealt nothing bounds nothing."""
    counts = [len(dealt(task.stage_ranks[s], rank, task.num_microbatches)) for s in own]
    busy = [(n, s) for n, s in zip(counts, own, strict=True) if n]
    if not busy:
        return []
    forward = sum(n * (ways.forward[s] + ways.sent[s]) for n, s in busy)
    gradient = sum(n * (ways.gradient[s] + ways.sent_back[s]) for n, s in busy)
    weights = sum(n * ways.weights[s] for n, s in busy)
    a, z = busy[0][1], busy[-1][1]
    start, way_out = ways.before[a], ways.out[a] - ways.sent_back[a]
    turn = ways.before[z] + ways.forward[z] + ways.around[z]
    return [
        start + forward + gradient + weights + after,
        start + forward + gradient + way_out,
        start + forward - ways.sent[z] + ways.around[z] + ways.gradient[z] + ways.out[z],
        turn + gradient + weights + after,
        turn + gradient + way_out,
    ]


def _links(task: OrderProblem, ways: Ways) -> list[float]:
    """(6); sends that keep their ranks busy have no link of their own."""
    if not task.sends_overlap:
        return []
    crossing: dict[tuple[int, int], dict[int, int]] = {}
    for stage in range(len(task.stages) - 1):
        here, there = task.stage_ranks[stage : stage + 2]
        for m in range(task.num_microbatches):
            pair = (rank_of(here, m), rank_of(there, m))
            if pair[0] != pair[1]:
                sends = crossing.setdefault(pair, {})
                sends[stage] = sends.get(stage, 0) + 1
    bounds: list[float] = []
    for sends in crossing.values():
        first, last = min(sends), max(sends)
        down = sum(n * task.stages[s].send_time for s, n in sends.items())
        back = sum(n * task.stages[s + 1].send_back_time for s, n in sends.items())
        behind = ways.forward[last + 1] + ways.around[last + 1] + ways.gradient[last + 1]
        bounds.append(ways.before[first] + ways.forward[first] + down + behind + ways.out[last + 1])
        ahead = ways.before[last + 1] + ways.forward[last + 1] + ways.around[last + 1]
        bounds.append(
            ahead + ways.gradient[last + 1] + back + ways.gradient[first] + ways.out[first]
        )
    return bounds


def _full_rank(
    task: OrderProblem, ways: Ways, rank: int, own: Sequence[int], after: float, room: int
) -> list[float]:
    """(7)-(12)."""
    bounds, held, area = [0.0], 0, 0.0
    together = len({tuple(task.stage_ranks[s]) for s in own}) == 1
    for s in own:
        n = len(dealt(task.stage_ranks[s], rank, task.num_microbatches))
        held = task.least_kept(s) + (held if together else 0)
        if n and held > room:
            return [math.inf]
        if n and held:
            bounds += _full_stage(ways, s, n, min(n, room // held), after, task.split)
        area += n * task.least_kept(s) * _stay(ways, s)
    return [*bounds, ways.before[own[0]] + area / room + after] if area else bounds


def _stay(ways: Ways, stage: int) -> float:
    """From the start of a microbatch's F to the end of its backward, at least."""
    turn = ways.around[stage] + ways.gradient[stage] + ways.sent_back[stage]
    return ways.forward[stage] + turn + ways.weights[stage]


def _full_stage(ways: Ways, s: int, n: int, held: int, after: float, split: bool) -> list[float]:
    """(7)-(11)."""
    forward = ways.forward[s] + ways.sent[s]
    gradient = ways.gradient[s] + ways.sent_back[s]
    whole, way_out = gradient + ways.weights[s], ways.out[s] - ways.sent_back[s]
    turn = ways.before[s] + ways.forward[s] + ways.around[s]
    last = ways.before[s] + n * forward - ways.sent[s] + (n - held) * whole
    turns, more = divmod(n - 1, held)
    turned = ways.before[s] + (turns + 1) * _stay(ways, s)
    apart = max(forward, ways.weights[s] if split else gradient)
    return [
        last + ways.around[s] + ways.gradient[s] + ways.out[s],
        turn + n * whole + (n - held) * forward + after,
        turn + n * gradient + (n - held) * forward + way_out,
        turned + more * apart + after,
        turned + more * forward - ways.weights[s] + way_out,
    ]
