"""Zero bubble on a V that holds a half or a third of what 1F1B holds
(Qi et al., Pipeline Parallelism with Controllable Memory, NeurIPS 2024).

V-Half:

    rank 0  0F0 0F1  .   .   .  5F0 5I0 5W0  .  5F1 5I1 0I0 5W1 0W0  .  0I1 0W1
    rank 1   .  1F0  .   .  4F0 1F1  .  4I0 4F1 4W0 1I0 4I1 1W0 4W1 1I1 1W1  .
    rank 2   .   .  2F0 3F0  .   .  2F1 3F1 3I0 2I0 3W0 2W0 3I1 2I1 3W1 2W1  .

V-Min:

    rank 0  0F0  .   .   .   .  5F0 0F1 5I0 5W0  .   .  5F1  .  0I0 5I1 0W0 5W1  .   .  0I1 0W1
    rank 1   .  1F0  .   .  4F0  .   .  1F1 4I0 4W0 4F1  .  1I0 1W0  .  4I1 4W1  .  1I1 1W1  .
    rank 2   .   .  2F0 3F0  .   .   .   .  2F1 3F1 3I0 2I0 3W0 2W0  .   .  3I1 2I1 3W1 2W1  .

Rank r has stages r and 2 k - 1 - r. Each microbatch repeats one block of F and I, 6 slots behind
the one before; a rank does 6 actions in that time. In the block, one rank's step down or up is an
offset of so many slots:

            F down   F up   I down   I up
    V-Min      1       1       1       1      lifespans of a rank sum to 4 k: a third of 12 k
    V-Half     2       1       2       1      to 6 k: a half

A microbatch turns at the ends of the V without a wait, but for the slots that keep the four actions
of a rank apart modulo 6: 2 before I turns down in V-Min where 3 divides k, else none; in V-Half 4
before I turns up where k is even, else 1. The block gives the order of F and I. W fills the slots
in which a rank would wait, and stands before an F that would hold more than the block does.
"""

from collections import deque
from typing import NamedTuple

from autopart.schedule import Action, Op, Order, Schedule
from autopart.schedules.kind import Kind
from autopart.schedules.pipeline import Pipeline
from autopart.schedules.placements import wave

PERIOD = 6


class Block(NamedTuple):
    """Slots from rank to rank on the four ways along the V, and those spent at its turns."""

    forward_down: int
    forward_up: int
    back_down: int
    back_up: int
    before_back_down: int
    before_back_up: int


def v_half(pipeline: Pipeline) -> Schedule:
    """V-Half."""
    last_turn = 4 if pipeline.num_ranks % 2 == 0 else 1
    return _fill(pipeline, Block(2, 1, 2, 1, 0, last_turn), _half_cap(pipeline.num_ranks))


def v_min(pipeline: Pipeline) -> Schedule:
    """V-Min."""
    first_turn = 2 if pipeline.num_ranks % 3 == 0 else 0
    return _fill(pipeline, Block(1, 1, 1, 1, first_turn, 0), _min_cap(pipeline.num_ranks))


def _without_weights(pipeline: Pipeline, block: Block, rank: int) -> Order:
    """F and I of one rank in the order of their slots."""
    k, hops = pipeline.num_ranks, pipeline.num_ranks - 1
    down, up = rank, pipeline.num_stages - 1 - rank
    turn = block.forward_down * hops + 1
    back = turn + block.forward_up * hops + 1 + block.before_back_down
    back_turn = back + block.back_down * hops + 1 + block.before_back_up
    first: tuple[tuple[int, int, Op], ...] = (
        (block.forward_down * rank, down, "F"),
        (turn + block.forward_up * (k - 1 - rank), up, "F"),
        (back + block.back_down * rank, up, "I"),
        (back_turn + block.back_up * (k - 1 - rank), down, "I"),
    )
    slots = sorted(
        (slot + PERIOD * m, Action(stage, op, m))
        for m in range(pipeline.num_microbatches)
        for slot, stage, op in first
    )
    return tuple(action for _, action in slots)


class _Rank:
    """One rank while its W are put in."""

    def __init__(self, fixed: Order) -> None:
        self.fixed = deque(fixed)
        self.order: list[Action] = []
        self.halves: deque[Action] = deque()
        self.held = 0

    def choose(self, done: set[Action], num_stages: int, cap: int) -> Action | None:
        """The next F or I if it can start and fits, else the oldest W, else nothing."""
        if self.fixed:
            stage, op, m = self.fixed[0]
            before, ends = (stage - 1, 0) if op == "F" else (stage + 1, num_stages - 1)
            ready = stage == ends or Action(before, op, m) in done
            if ready and not (op == "F" and self.held >= cap):
                return self.fixed[0]
        return self.halves[0] if self.halves else None

    def run(self, action: Action) -> None:
        self.order.append(action)
        if action.op == "W":
            self.halves.popleft()
            self.held -= 1
            return
        self.fixed.popleft()
        if action.op == "F":
            self.held += 1
        else:
            self.halves.append(Action(action.stage, "W", action.microbatch))


def _fill(pipeline: Pipeline, block: Block, cap: int) -> Schedule:
    """Run F and I in slots as the block orders them, and W where it fits or must."""
    ranks = [_Rank(_without_weights(pipeline, block, r)) for r in range(pipeline.num_ranks)]
    done: set[Action] = set()
    left = 3 * pipeline.num_stages * pipeline.num_microbatches
    while left:
        chosen = [rank.choose(done, pipeline.num_stages, cap) for rank in ranks]
        running = [action for action in chosen if action is not None]
        assert running, f"{pipeline} cannot run within {cap}"
        for rank, action in zip(ranks, chosen, strict=True):
            if action is not None:
                rank.run(action)
        done.update(running)
        left -= len(running)
    return tuple(tuple(rank.order) for rank in ranks)


def _half_cap(num_ranks: int) -> int:
    return num_ranks + (2 if num_ranks % 2 == 0 else 1)


def _min_cap(num_ranks: int) -> int:
    return 2 * -(-(num_ranks + 2) // 3)


def _half_in_flight(pipeline: Pipeline) -> tuple[int, ...]:
    most = min(_half_cap(pipeline.num_ranks), 2 * pipeline.num_microbatches)
    return (most,) * pipeline.num_ranks


def _min_in_flight(pipeline: Pipeline) -> tuple[int, ...]:
    most = min(_min_cap(pipeline.num_ranks), 2 * pipeline.num_microbatches)
    return (most,) * pipeline.num_ranks


V_HALF = Kind(
    name="v-half",
    generate=v_half,
    in_flight=_half_in_flight,
    source="Qi et al., Pipeline Parallelism with Controllable Memory, NeurIPS 2024",
    pictured=Pipeline(3, 2, 2),
    stages_per_rank=2,
    placement=wave,
    splits_backward=True,
)

V_MIN = Kind(
    name="v-min",
    generate=v_min,
    in_flight=_min_in_flight,
    source="Qi et al., Pipeline Parallelism with Controllable Memory, NeurIPS 2024",
    pictured=Pipeline(3, 2, 2),
    stages_per_rank=2,
    placement=wave,
    splits_backward=True,
)
