"""Stash that waits in another rank's memory: the executor's half of L and T.

The lender starts a move in the background and waits for it after the action beside it. On the other
rank a thread follows the lender's moves in their order, while its own actions run. The lender has one
move under way at a time, so both ranks meet at the same one, and no circle of waiting ranks can form.

    L   the number of storages, their sizes, and the bytes of each
    T   the bytes of each
"""

import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import distributed

from autopart.runtime.engine.stage import TorchStage
from autopart.runtime.engine.transfers import BETWEEN_RANKS, Message, Transfers, Transport
from autopart.runtime.measuring.stash_meter import StashMeter
from autopart.runtime.transforms.movable_stash import MovableStash
from autopart.schedules.actions import Action, Schedule, StageRanks
from autopart.schedules.lending import MOVES, computing, partners

_TAG = 1
"""Gloo's tag for stash. Other messages have tag 0."""


class Lender:
    """The moves of a rank whose stash waits on its partner."""

    def __init__(self, stage: TorchStage, partner: int, transfers: Transport) -> None:
        self._stage, self._partner, self._transfers = stage, partner, transfers
        self._away: dict[int, MovableStash] = {}
        """The stash of each microbatch that is away."""
        self.under_way: Message | None = None
        """The move that has begun."""
        self._is_due = False

    def start(self, move: Action, meter: StashMeter | None) -> None:
        """Begin an L or T, once no other is under way; `meter` counts stash that comes back."""
        assert self.under_way is None
        stage, device = self._stage, self._stage.device
        if move.op == "L":
            stash = self._away[move.microbatch] = stage.movable.pop(move.microbatch)
            sent = stash.bytes_to_send()
            sizes = torch.tensor([part.nbytes for part in sent], device=device)
            count = torch.tensor([len(sent)], device=device)
            parts = (count, sizes, *sent) if sent else (count,)
            self.under_way = self._transfers.start_send(parts, self._partner, move)
        else:
            room = self._away.pop(move.microbatch).come_back()
            if meter is not None:
                meter.came_back(move.stage, room)
            self.under_way = self._transfers.start_receive(room, self._partner, move)
        self._is_due = False

    def due(self) -> Message | None:
        """The move that must be over before the action that the caller is about to run."""
        is_due, self._is_due = self._is_due, True
        return self.under_way if is_due else None

    def finish(self) -> None:
        """Wait for the move under way; raises LostRank if the partner is gone."""
        if self.under_way is not None:
            move = self.under_way.action
            self.under_way.wait()
            self.under_way = None
            if move.op == "L":
                self._away[move.microbatch].leave()


class Borrower:
    """Keeps a lender's stash in this rank's memory. The places stay from step to step."""

    def __init__(
        self, lender: int, moves: Sequence[Action], transfers: Transport, device: torch.device
    ) -> None:
        self.lender = lender
        """The rank whose stash is kept here."""
        self.moves = moves
        """The lender's moves, in the order of a step."""
        self._transfers, self._device = transfers, device
        # Its own stream: the rank's actions wait for no move.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._free: list[tuple[torch.Tensor, ...]] = []
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    @property
    def places(self) -> list[torch.Tensor]:
        """The memory of all places, between two steps."""
        return [part for place in self._free for part in place]

    def begin(self) -> None:
        """Begin to follow the moves of one step."""
        self._thread = threading.Thread(target=self._follow, name="autopart-stash", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Wait until the lender has all its stash back; raises LostRank if the lender is gone."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise the exception that ended the thread, if any."""
        if self._failure is not None:
            raise self._failure

    def keep(self, sizes: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """A free place for storages of these sizes, or a new one instead of a free one."""
        place = self._free.pop() if self._free else ()
        if [part.nbytes for part in place] == list(sizes):
            return place
        del place
        return tuple(torch.empty(n, dtype=torch.uint8, device=self._device) for n in sizes)

    def _follow(self) -> None:
        try:
            with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
                self._keep_all()
        except Exception as error:  # The rank's own thread raises it again.
            self._failure = error

    def _keep_all(self) -> None:
        kept: dict[tuple[int, int], tuple[torch.Tensor, ...]] = {}
        for move in self.moves:
            of = move.stage, move.microbatch
            if move.op == "L":
                place = kept[of] = self.keep(self._sizes(move))
                self._transfers.start_receive(place, self.lender, move).wait()
            else:
                place = kept.pop(of)
                self._transfers.start_send(place, self.lender, move).wait()
                self._free.append(place)

    def _sizes(self, move: Action) -> tuple[int, ...]:
        """The sizes that the lender announces."""
        (count,) = self._numbers(1, move)
        return self._numbers(count, move) if count else ()

    def _numbers(self, count: int, move: Action) -> tuple[int, ...]:
        numbers = torch.empty(count, dtype=torch.int64, device=self._device)
        self._transfers.start_receive((numbers,), self.lender, move).wait()
        return tuple(numbers.tolist())


class StashMoves:
    """One rank's part in all moves: it lends, keeps another rank's stash, or neither."""

    def __init__(self, lender: Lender | None = None, borrower: Borrower | None = None) -> None:
        self._lender, self._borrower = lender, borrower

    @property
    def places(self) -> Sequence[torch.Tensor]:
        """The memory that this rank has for another rank's stash."""
        return () if self._borrower is None else self._borrower.places

    @property
    def lender_here(self) -> int | None:
        """The rank whose stash is kept here; None where there is none."""
        return None if self._borrower is None else self._borrower.lender

    @property
    def under_way(self) -> Message | None:
        """This rank's own move that has begun."""
        return None if self._lender is None else self._lender.under_way

    def begin(self) -> None:
        """Begin a step."""
        if self._borrower is not None:
            self._borrower.begin()

    def start(self, move: Action, meter: StashMeter | None) -> None:
        """Begin an L or T of this rank."""
        assert self._lender is not None, "only the orders of lenders have moves"
        self._lender.start(move, meter)

    def due(self) -> Message | None:
        """The own move that must be over before the action that the caller is about to run.

        Raises the failure of the thread that keeps another rank's stash, if it failed.
        """
        if self._borrower is not None:
            self._borrower.check()
        return None if self._lender is None else self._lender.due()

    def finish(self) -> None:
        """Wait for the own move under way; raises LostRank if the partner is gone."""
        if self._lender is not None:
            self._lender.finish()

    def end(self) -> None:
        """End a step: all stash is back with its lender."""
        if self._borrower is not None:
            self._borrower.end()


def moves_of_rank(
    schedule: Schedule,
    stage_ranks: StageRanks,
    rank: int,
    stages: Mapping[int, TorchStage],
    transfers: Transport,
) -> StashMoves:
    """The part of `rank` in the moves of a schedule. Its `stages` note the stash that will leave."""
    if computing(schedule) is schedule or not stages:
        return StashMoves()
    partner = partners(stage_ranks)[rank]
    own, others = ([a for a in schedule[r] if a.op in MOVES] for r in (rank, partner))
    lender = borrower = None
    if own:
        (stage,) = stages.values()
        stage.lends = frozenset(move.microbatch for move in own)
        lender = Lender(stage, partner, transfers)
    if others:
        (stage,) = stages.values()
        borrower = Borrower(partner, others, transfers, stage.device)
    return StashMoves(lender, borrower)


def transfers_of_moves(
    schedule: Schedule, stage_ranks: StageRanks, rank: int, device: torch.device
) -> Transport:
    """Moves between partners, apart from all other messages. Collective over all ranks.

    Gloo keeps them apart by a tag, and NCCL, which has no tags, by groups of two.
    """
    if device.type == "cpu":
        return Transfers(partial(distributed.isend, tag=_TAG), partial(distributed.irecv, tag=_TAG))
    found: Transport = BETWEEN_RANKS
    if computing(schedule) is not schedule:
        for one, other in sorted(partners(stage_ranks).items()):
            if one < other:
                group = distributed.new_group([one, other])
                if isinstance(group, distributed.ProcessGroup):
                    found = Transfers(
                        partial(distributed.isend, group=group),
                        partial(distributed.irecv, group=group),
                    )
    return found
