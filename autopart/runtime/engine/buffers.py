"""One rank's tensors in the middle of a step: messages, and results that wait for their reader."""

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import torch

from autopart.runtime.engine.lending import StashMoves
from autopart.runtime.engine.stage import Leaves, TorchStage
from autopart.runtime.engine.transfers import BETWEEN_RANKS, Message, Transport
from autopart.runtime.measuring.stash_meter import StashMeter
from autopart.schedules.actions import Action
from autopart.schedules.messages import Receive, Send

Stages = Mapping[int, TorchStage]
"""One rank's stages, by stage number in the pipeline."""
Tensors = tuple[torch.Tensor, ...]


class _Reader(NamedTuple):
    """The action that will read a result: a stage's forward or backward for one microbatch."""

    stage: int
    is_forward: bool
    microbatch: int


class Buffers:
    """Tensors between the actions of one rank, during one step."""

    def __init__(
        self,
        stages: Stages,
        microbatches: Mapping[int, Leaves],
        loss_scale: float,
        transfers: Transport = BETWEEN_RANKS,
        meter: StashMeter | None = None,
    ) -> None:
        """`loss_scale` multiplies each microbatch's loss before its backward.

        `microbatches` maps each microbatch to the batch tensors that this rank's stages read.
        `meter` counts stash bytes in forwards.
        """
        self._transfers = transfers
        self._stages = stages
        self._microbatches = microbatches
        self._loss_scale = loss_scale
        self._meter = meter
        self._arriving: dict[Action, Message] = {}
        self._results: dict[_Reader, Tensors] = {}
        self.sends: deque[Message] = deque()
        """Sends in progress, oldest first."""
        self.weights: Mapping[int, float] | None = None
        """The weight of each microbatch's loss; None where all weigh 1."""
        self.loss: torch.Tensor | None = None
        """Sum of losses over this rank's microbatches on the last stage; None without this
        stage."""

    def post(self, event: Receive) -> None:
        """Allocate memory for a message and start to receive it."""
        stage, is_forward = self._stages[event.action.stage], event.action.op == "F"
        metas = stage.program.received_meta if is_forward else stage.program.output_meta
        buffers = tuple(
            torch.empty(meta.shape, dtype=meta.dtype, device=stage.device)
            for meta in metas
            if is_forward or meta.requires_grad
        )
        self._arriving[event.action] = self._transfers.start_receive(
            buffers, event.other_rank, event.action
        )

    def send(self, event: Send) -> None:
        """Start to send an action's results to another rank."""
        tensors = self._results.pop(_reader_of(event.action))
        self.sends.append(self._transfers.start_send(tensors, event.other_rank, event.action))

    def sender(self, action: Action) -> int | None:
        """The rank whose message the action waits for; None if it waits for none."""
        message = self._arriving.get(action)
        return None if message is None else message.other_rank

    def needed(self, action: Action) -> Tensors:
        """The action's inputs from other stages; waits for their message if another rank sends
        it."""
        message = self._arriving.pop(action, None)
        if message is not None:
            message.wait()
            return message.tensors
        here = _Reader(action.stage, action.op == "F", action.microbatch)
        return () if action.op == "W" else self._results.pop(here, ())

    def made(self, action: Action) -> Tensors:
        """The action's results that wait for their reader."""
        return self._results.get(_reader_of(action), ())

    def compute(self, action: Action, needed: Tensors) -> None:
        """Run the action on its stage, and keep the results for their reader."""
        stage = self._stages[action.stage]
        if action.op == "W":
            stage.weight_backward(action.microbatch)
        elif action.op == "F":
            results = self._forward(action, needed)
            if stage.is_last:
                self._add_loss(results[0], self._weight(action))
            else:
                self._results[_reader_of(action)] = results
        else:
            self._release(Action(action.stage, "F", action.microbatch))
            defers = action.op == "I"
            scale = self._loss_scale * self._weight(action)
            results = stage.backward(action.microbatch, needed, scale, defers=defers)
            if not stage.is_first:
                self._results[_reader_of(action)] = results

    def _weight(self, action: Action) -> float:
        return 1.0 if self.weights is None else self.weights[action.microbatch]

    def _add_loss(self, loss: torch.Tensor, weight: float) -> None:
        """Add a microbatch's loss; a weight of 0 leaves it out, also where it is not a number."""
        share = torch.zeros_like(loss) if weight == 0.0 else loss * weight
        self.loss = share if self.loss is None else self.loss + share

    def start_move(self, moves: StashMoves, move: Action) -> None:
        """Start to move a stash of this rank."""
        moves.start(move, self._meter)

    def _release(self, forward: Action) -> None:
        """Free the tensors that a forward has sent.

        Its gradient has come back, so its message has arrived and the wait returns at once.
        """
        for message in self.sends:
            if message.action == forward:
                message.wait()
        self.sends = deque(message for message in self.sends if message.action != forward)

    def _forward(self, action: Action, received: Tensors) -> Tensors:
        stage, leaves = self._stages[action.stage], self._microbatches[action.microbatch]
        if self._meter is None:
            return stage.forward(action.microbatch, received, leaves)
        module = stage.program.module
        there = (*module.parameters(), *module.buffers(), *leaves.values())
        with self._meter.forward(action.stage, received, there):
            results = stage.forward(action.microbatch, received, leaves)
        self._meter.take(action.stage, results, is_last=stage.is_last)
        return results


def _reader_of(action: Action) -> _Reader:
    is_forward = action.op == "F"
    return _Reader(action.stage + (1 if is_forward else -1), is_forward, action.microbatch)
