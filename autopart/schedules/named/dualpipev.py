"""DualPipe on one V, which joins its two directions (DeepSeek-AI, DualPipe, 2024 and 2025).

    rank 0  0F0 0F1 0F2 3F0 3I0 3W0 3F1 0F3 3B1 3F2 0B0 3B2 3F3 0B1 3B3 0I2 0W2 0I3 0W3
    rank 1   .  1F0 2F0 1F1 2F1 1F2 2B0 2F2 1B0 1F3 2B1 2F3 1B1 2B2 1B2 2I3 1I3 2W3 1W3

Rank r has stages r and 2 k - 1 - r. Between fill and drain, it runs a forward on one arm next to a
whole backward on the other. An executor may overlap the two. Backwards are split only where fill
and drain leave gaps. In the drain each W is the oldest that is left, on either stage.
"""

from collections import deque

from autopart.schedules.actions import Action, Op, Order, Schedule
from autopart.schedules.kind import Kind
from autopart.schedules.pipeline import Pipeline
from autopart.schedules.placements import wave


class _RankOrder:
    """The order of one rank, as it grows."""

    def __init__(self) -> None:
        self.order: list[Action] = []
        self.turns: dict[tuple[int, bool], int] = {}
        self.weights_left: deque[tuple[int, int]] = deque()

    def run(self, stage: int, op: Op) -> None:
        """Append F, B or I on the stage's next microbatch."""
        turn = (stage, op == "F")
        microbatch = self.turns.get(turn, 0)
        self.turns[turn] = microbatch + 1
        self.order.append(Action(stage, op, microbatch))
        if op == "I":
            self.weights_left.append((stage, microbatch))

    def run_weights(self) -> None:
        """Append the oldest W that is left, if there is one."""
        if self.weights_left:
            stage, microbatch = self.weights_left.popleft()
            self.order.append(Action(stage, "W", microbatch))


def dualpipev(pipeline: Pipeline) -> Schedule:
    """DualPipeV."""
    return tuple(_order(pipeline, rank) for rank in range(pipeline.num_ranks))


def _order(pipeline: Pipeline, rank: int) -> Order:
    down, up = rank, pipeline.num_stages - 1 - rank
    hops = pipeline.num_ranks - 1 - rank
    pairs = pipeline.microbatches_per_replica - pipeline.num_stages + rank + 1
    made = _RankOrder()
    # Step 1: fill, first the arm down, then both arms.
    for _ in range(2 * hops):
        made.run(down, "F")
    for _ in range(rank + 1):
        made.run(down, "F")
        made.run(up, "F")
    # Step 2: the first backwards are split: I hands its gradient on before W runs.
    for _ in range(hops):
        made.run(up, "I")
        made.run_weights()
        made.run(up, "F")
    # Step 3: a forward on one arm beside a backward on the other.
    for turn in range(pairs + hops):
        if turn < pairs:
            made.run(down, "F")
        made.run(up, "B")
        made.run(up, "F")
        made.run(down, "B")
    # Step 4: drain. The first backwards are whole, the later ones split. W's fill the gaps.
    for turn in range(2 * (rank + 1)):
        made.run((up, down)[turn % 2], "B" if turn <= rank else "I")
    for _ in range(hops):
        made.run_weights()
        made.run(down, "I")
    for _ in range(rank + 1):
        made.run_weights()
    return tuple(made.order)


def _takes(pipeline: Pipeline) -> bool:
    return pipeline.microbatches_per_replica >= pipeline.num_stages


def _in_flight(pipeline: Pipeline) -> tuple[int, ...]:
    return (pipeline.num_stages + 1,) * pipeline.num_ranks


DUALPIPEV = Kind(
    name="dualpipev",
    generate=dualpipev,
    in_flight=_in_flight,
    source="DeepSeek-AI, DeepSeek-V3 Technical Report, 2024; DualPipe repository, 2025",
    pictured=Pipeline(2, 2, 4),
    stages_per_rank=2,
    placement=wave,
    splits_backward=True,
    takes=_takes,
    rule="at least as many microbatches as stages, 2 k",
)
