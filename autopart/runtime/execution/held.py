"""What one rank holds in the middle of a step: messages, and results that wait for their reader."""

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import torch

from autopart.runtime.execution.messages import Receive, Send
from autopart.runtime.execution.stage import Leaves, TorchStage
from autopart.runtime.execution.stash_meter import StashMeter
from autopart.runtime.execution.transfers import BETWEEN_RANKS, Message, Transfers, start
from autopart.schedule import Action

Stages = Mapping[int, TorchStage]
"""The stages of one rank by their number in the pipeline."""
Tensors = tuple[torch.Tensor, ...]


class _Reader(NamedTuple):
    """Who waits for results: the forward of a stage, or its backward."""

    stage: int
    is_forward: bool
    microbatch: int


class Held:
    """One step's tensors between the actions of a rank."""

    def __init__(
        self,
        stages: Stages,
        microbatches: Mapping[int, Leaves],
        loss_scale: float,
        transfers: Transfers = BETWEEN_RANKS,
        meter: StashMeter | None = None,
    ) -> None:
        """`loss_scale` multiplies the loss of each microbatch for its gradients; `meter` watches."""
        self._transfers = transfers
        self._stages = stages
        self._microbatches = microbatches
        self._loss_scale = loss_scale
        self._meter = meter
        self._arriving: dict[Action, Message] = {}
        self._results: dict[_Reader, Tensors] = {}
        self.sends: deque[Message] = deque()
        self.loss: torch.Tensor | None = None
        """The sum over the microbatches of the last stage, where this rank has it."""

    def post(self, event: Receive) -> None:
        """Make room for a message and let it arrive."""
        stage, is_forward = self._stages[event.action.stage], event.action.op == "F"
        metas = stage.program.received_meta if is_forward else stage.program.output_meta
        buffers = tuple(
            torch.empty(meta.shape, dtype=meta.dtype, device=stage.device)
            for meta in metas
            if is_forward or meta.requires_grad
        )
        self._arriving[event.action] = start(
            self._transfers.receive, buffers, event.peer, event.action
        )

    def send(self, event: Send) -> None:
        """Hand the results of an action to another rank."""
        tensors = self._results.pop(_reader_of(event.action))
        self.sends.append(start(self._transfers.send, tensors, event.peer, event.action))

    def sender(self, action: Action) -> int | None:
        """The rank whose message the action waits for."""
        message = self._arriving.get(action)
        return None if message is None else message.peer

    def needed(self, action: Action) -> Tensors:
        """What the action takes from other stages; waits until it has arrived."""
        message = self._arriving.pop(action, None)
        if message is not None:
            message.wait()
            return message.tensors
        here = _Reader(action.stage, action.op == "F", action.microbatch)
        return () if action.op == "W" else self._results.pop(here, ())

    def compute(self, action: Action, needed: Tensors) -> None:
        """Let the stage run the action, and keep its results for their reader."""
        stage = self._stages[action.stage]
        if action.op == "W":
            stage.weight_backward(action.microbatch)
        elif action.op == "F":
            results = self._forward(action, needed)
            if stage.is_last:
                self.loss = results[0] if self.loss is None else self.loss + results[0]
            else:
                self._results[_reader_of(action)] = results
        else:
            self._let_go(Action(action.stage, "F", action.microbatch))
            puts_off = action.op == "I"
            results = stage.backward(action.microbatch, needed, self._loss_scale, puts_off=puts_off)
            if not stage.is_first:
                self._results[_reader_of(action)] = results

    def _let_go(self, forward: Action) -> None:
        """Hold what a forward has sent no longer: the gradient that has come back for it says that it has
        arrived, so that waiting takes no time."""
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
        self._meter.take(action.stage, results if stage.is_last else ())
        return results


def _reader_of(action: Action) -> _Reader:
    is_forward = action.op == "F"
    return _Reader(action.stage + (1 if is_forward else -1), is_forward, action.microbatch)
