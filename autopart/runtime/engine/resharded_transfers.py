"""Messages between tensor groups of different sizes: each value goes in pieces from places to places.

Torch's default process group has all processes then. Every process derives the same pieces from the plan,
so both ends of a pair send and receive theirs in one order: by value name, then as `pieces` lists them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import distributed

from autopart.runtime.capture.stage_modules import StageProgram
from autopart.runtime.engine.transfers import Message, with_other_rank
from autopart.runtime.sharding.resharding import Piece, Side, pieces
from autopart.schedules.actions import Action

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """The values that cross the cut behind a stage, by name, with their pieces."""

    forward: Mapping[str, tuple[Piece, ...]]
    backward: Mapping[str, tuple[Piece, ...]]
    """For gradients; only values that have one."""


def cuts_of(
    programs: Sequence[StageProgram],
    sides: Sequence[Mapping[str, Side]],
    shapes: Mapping[str, Shape],
) -> tuple[Cut, ...]:
    """The cuts behind all stages except the last.

    `sides` has for each stage how its places hold the values, by name, and `shapes` those of the whole
    values. Raises PlanError where a value cannot cross a cut.
    """
    found: list[Cut] = []
    for ahead, program in enumerate(programs[:-1]):
        forward: dict[str, tuple[Piece, ...]] = {}
        backward: dict[str, tuple[Piece, ...]] = {}
        crossing = sorted(zip(program.outputs, program.output_meta, strict=True))
        for name, meta in crossing:
            here, there = sides[ahead][name], sides[ahead + 1][name]
            forward[name] = pieces(name, here, there, shapes[name])
            if meta.requires_grad:
                backward[name] = pieces(name, there, here, shapes[name])
        found.append(Cut(forward, backward))
    return tuple(found)


class ReshardedTransfers:
    """The messages of one process, at `place` of its tensor group (`transfers.Transport`)."""

    def __init__(
        self,
        programs: Sequence[StageProgram],
        cuts: Sequence[Cut],
        processes: Sequence[Sequence[int]],
        place: int,
    ) -> None:
        """`processes` has those of each rank of the plan, in the order of their places."""
        self._programs, self._cuts = programs, cuts
        self._processes, self._place = processes, place

    def start_send(
        self, tensors: Sequence[torch.Tensor], other_rank: int, action: Action
    ) -> Message:
        """Start to send this place's pieces; raises LostRank if another process is gone."""
        names, found = self._names(action, sends=True)
        own, others = dict(zip(names, tensors, strict=True)), self._processes[other_rank]
        works: list[_PieceUnderWay] = []
        kept: list[torch.Tensor] = []
        for name, all_pieces in found.items():
            for piece in all_pieces:
                if piece.sender == self._place:
                    part, other = piece.of_sender(own[name]), others[piece.receiver]
                    kept.append(part)
                    works.append(_under_way(partial(distributed.isend, part, other), other, action))
        return Message(action, _first(works, others), tuple(kept), tuple(works))

    def start_receive(
        self, buffers: Sequence[torch.Tensor], other_rank: int, action: Action
    ) -> Message:
        """Start to receive this place's pieces; raises LostRank if another process is gone."""
        names, found = self._names(action, sends=False)
        own, others = dict(zip(names, buffers, strict=True)), self._processes[other_rank]
        works: list[_PieceUnderWay] = []
        for name, all_pieces in found.items():
            for piece in all_pieces:
                if piece.receiver == self._place:
                    part, other = piece.of_receiver(own[name]), others[piece.sender]
                    # A part that does not lie in one stretch arrives beside it, and is copied there.
                    arrives = (
                        part
                        if part.is_contiguous()
                        else torch.empty_like(part, memory_format=torch.contiguous_format)
                    )
                    work = _under_way(partial(distributed.irecv, arrives, other), other, action)
                    works.append(work if arrives is part else work.copied(arrives, part))
        return Message(action, _first(works, others), tuple(buffers), tuple(works))

    def _names(
        self, action: Action, *, sends: bool
    ) -> tuple[list[str], Mapping[str, tuple[Piece, ...]]]:
        """The names of a message's tensors in their order, and their pieces by name."""
        program, is_forward = self._programs[action.stage], action.op == "F"
        # A result of F and a gradient for B cross the cut behind the stage, the others the one before it.
        behind = is_forward == sends
        cut = self._cuts[action.stage if behind else action.stage - 1]
        values = zip(
            program.outputs if behind else program.received,
            program.output_meta if behind else program.received_meta,
            strict=True,
        )
        names = [name for name, meta in values if is_forward or meta.requires_grad]
        return names, cut.forward if is_forward else cut.backward


@dataclass(frozen=True, slots=True)
class _PieceUnderWay:
    """One piece that is sent or received."""

    work: distributed.Work | None
    process: int
    action: Action
    arrived: torch.Tensor | None = None
    target: torch.Tensor | None = None
    """Where the arrived tensor is copied to."""

    def copied(self, arrived: torch.Tensor, target: torch.Tensor) -> "_PieceUnderWay":
        """The same piece, which is copied once it has arrived."""
        return _PieceUnderWay(self.work, self.process, self.action, arrived, target)

    def wait(self) -> None:
        """Wait until the piece is in its place; raises LostRank if the other process is gone."""
        if self.work is not None:
            with_other_rank(self.work.wait, self.process, str(self.action))
        if self.arrived is not None and self.target is not None:
            self.target.copy_(self.arrived)


def _under_way(
    transfer: partial[distributed.Work | None], process: int, action: Action
) -> _PieceUnderWay:
    work = with_other_rank(transfer, process, str(action))
    return _PieceUnderWay(work, process, action)


def _first(works: Sequence[_PieceUnderWay], others: Sequence[int]) -> int:
    """A process that the message waits for; any of the other group where it waits for none."""
    return works[0].process if works else others[0]
