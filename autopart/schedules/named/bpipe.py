"""1F1B in which ranks of the first half lend stash to ranks of the second half
(Kim et al., BPipe, ICML 2023).

    rank 0  0F0 0F1 0F2 0F3  .   .   .  0B0 0F4 0B1  .  0B2  .  0B3  .  0B4
    rank 0          0L1 0L2             0T1 0L3 0T2     0T3
    rank 1   .  1F0 1F1 1F2  .   .  1B0 1F3 1B1 1F4 1B2  .  1B3  .  1B4  .
    rank 2   .   .  2F0 2F1  .  2B0 2F2 2B1 2F3 2B2 2F4 2B3  .  2B4  .   .
    rank 3   .   .   .  3F0 3B0 3F1 3B1 3F2 3B2 3F3 3B3 3F4 3B4  .   .   .

The second line of a rank has its moves, each beside the action that it runs beside: L lends the
stash of a microbatch, T takes it back. Rank r lends to rank k - 1 - r.

1F1B has w = k - r microbatches in flight on rank r and r + 1 on its partner. With the moves, each
of the two has room for at most n = k / 2 + 1 stashes, one in transit included.

- L of microbatch i runs beside the next forward, F of i + 1.
- T of i runs beside the backward before, B of i - 1.
- So L and T take turns in a full pipeline, and a stash is away for w - 3 forwards.
- A rank with w > n keeps w - n stashes away. It lends w - n of any w - 3 microbatches: where an
  action would find one stash too many, the latest that can be away by then is lent.
"""

from autopart.schedules.actions import Action, Order, Schedule
from autopart.schedules.kind import Kind
from autopart.schedules.named.one_f_one_b import ONE_F_ONE_B
from autopart.schedules.pipeline import Pipeline


def bpipe(pipeline: Pipeline) -> Schedule:
    """BPipe for one pipeline with an even number of ranks."""
    most = most_on_rank(pipeline.num_ranks)
    return tuple(_lending(order, most) for order in ONE_F_ONE_B.generate(pipeline))


def most_on_rank(num_ranks: int) -> int:
    """Stashes that each rank has room for, one in transit included: k / 2 + 1."""
    return num_ranks // 2 + 1


def _lending(order: Order, most: int) -> Order:
    """The order with the fewest moves that keep at most `most` stashes on the rank."""
    place = {(op, microbatch): at for at, (_, op, microbatch) in enumerate(order)}
    lend = {m - 1: at for (op, m), at in place.items() if op == "F"}
    take = {m + 1: at for (op, m), at in place.items() if op == "B"}
    beside: dict[int, Action] = {}
    in_flight: list[int] = []
    away: set[int] = set()
    for at, (stage, op, microbatch) in enumerate(order):
        # Step 1: a stash that comes back has its room again.
        away = {m for m in away if take[m] > at}
        if op == "F":
            in_flight.append(microbatch)
        # Step 2: one stash too many: the latest whose L is over by now is away.
        while len(in_flight) - len(away) > most:
            lent = max(m for m in in_flight if m not in away and lend.get(m, at) < at)
            away.add(lent)
            beside[lend[lent]] = Action(stage, "L", lent)
            beside[take[lent]] = Action(stage, "T", lent)
        if op == "B":
            in_flight.remove(microbatch)
    moves = ([beside[at]] if at in beside else [] for at in range(len(order)))
    return tuple(one for own, action in zip(moves, order, strict=True) for one in (*own, action))


def _takes(pipeline: Pipeline) -> bool:
    return pipeline.num_ranks % 2 == 0 and pipeline.microbatches_per_replica >= 1


BPIPE = Kind(
    name="bpipe",
    generate=bpipe,
    in_flight=ONE_F_ONE_B.in_flight,
    source="Kim et al., BPipe, ICML 2023",
    pictured=Pipeline(4, 1, 5),
    lends=True,
    takes=_takes,
    rule="an even number of ranks",
)
