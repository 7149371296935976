"""Plans whose ranks lend stash, and the bytes that they move."""

from collections.abc import Sequence

import msgspec
import torch
from torch import distributed

from autopart.records.plan import Plan
from autopart.runtime.engine import lending as lending_of_ranks
from autopart.runtime.engine.run_settings import RunSettings
from autopart.runtime.transforms.movable_stash import MovableStash
from autopart.schedules.actions import Action, Schedule, parse_order
from autopart.schedules.catalogue import make_schedule
from tests.support.runtime.on_ranks import complaint_of, run
from tests.support.runtime.plans import capture, plan_for

LINE = [[0], [1], [2], [3]]

FIRST, SECOND = "F0 F1 L1 F2 L2 F3 T1 B0 T2 B1 B2 B3", "F0 B0 F1 B1 F2 B2 F3 B3"
"""Orders of two stages for four microbatches: two stashes are away at once."""


def bpipe(model: str, num_microbatches: int = 6, dtype: str = "float64") -> Plan:
    """Four uneven stages, of which the first lends to the last."""
    orders = make_schedule("bpipe", LINE, num_microbatches)
    assert any(action.op == "L" for action in orders[0])
    of = plan_for(
        model,
        capture(model, 2, dtype),
        [0.2, 0.45, 0.7],
        num_microbatches=num_microbatches,
        dtype=dtype,
        ranks=LINE,
        orders=orders,
    )
    return lending(of)


def lending_by_hand(model: str, num_replicas: int = 1, dtype: str = "float64") -> Plan:
    """Two stages, of which the first lends to the second, in each of some replicas."""
    ranks = [range(num_replicas), range(num_replicas, 2 * num_replicas)]
    of = plan_for(
        model,
        capture(model, 2, dtype),
        [0.34],
        num_microbatches=4 * num_replicas,
        dtype=dtype,
        ranks=ranks,
        orders=_orders(num_replicas),
    )
    return lending(of)


def _orders(num_replicas: int) -> Schedule:
    def order(stage: int, text: str, turn: int) -> tuple[Action, ...]:
        words = (f"{stage}{w[0]}{int(w[1:]) * num_replicas + turn}" for w in text.split())
        return tuple(parse_order(" ".join(words)))

    return tuple(
        order(stage, text, turn)
        for stage, text in enumerate((FIRST, SECOND))
        for turn in range(num_replicas)
    )


def lending(plan: Plan) -> Plan:
    """The plan under the schedule whose orders lend stash, on a cluster that can."""
    cluster = msgspec.structs.replace(plan.cluster, sends_overlap=True, sends="buffered")
    return msgspec.structs.replace(plan, schedule="bpipe", cluster=cluster)


def complaint_with_mixed_stash(rank: int, plan: Plan, settings: RunSettings) -> str:
    """The error of a run in which the first two stashes come back in each other's place."""
    begin = lending_of_ranks.Borrower.begin

    def mixed(self: lending_of_ranks.Borrower) -> None:
        moves = list(self.moves)
        one, other = [at for at, move in enumerate(moves) if move.op == "T"][:2]
        moves[one], moves[other] = moves[other], moves[one]
        self.moves = moves
        begin(self)

    lending_of_ranks.Borrower.begin = mixed
    try:
        return complaint_of(rank, plan, settings)
    finally:
        lending_of_ranks.Borrower.begin = begin


def bytes_moved(rank: int, plan: Plan, settings: RunSettings) -> tuple[list[int], list[int]]:
    """In the last step of a run: bytes of each stash that left this rank, and of each that came to it."""
    gone, come = list[int](), list[int]()
    leave, keep = MovableStash.bytes_to_send, lending_of_ranks.Borrower.keep

    def leaving(self: MovableStash) -> tuple[torch.Tensor, ...]:
        sent = leave(self)
        gone.append(sum(part.nbytes for part in sent))
        return sent

    def keeping(self: lending_of_ranks.Borrower, sizes: Sequence[int]) -> tuple[torch.Tensor, ...]:
        come.append(sum(sizes))
        return keep(self, sizes)

    MovableStash.bytes_to_send = leaving
    lending_of_ranks.Borrower.keep = keeping
    try:
        run(rank, plan, settings)
    finally:
        MovableStash.bytes_to_send = leave
        lending_of_ranks.Borrower.keep = keep
    assert distributed.get_rank() == rank
    return gone, come
