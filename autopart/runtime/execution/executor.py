"""Runs one rank's part of a step: its program, event by event. It decides nothing.

    receive   make fresh room for a message and let it arrive in the background
    F, B      wait for what the action needs, then let the stage compute
    send      hand the results to the peer in the background

At most `MAX_SENDS` sends are under way, and room for a message exists only from its receive to
its action, so nothing grows with the number of microbatches but what the schedule holds.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import distributed

from autopart.runtime.execution.clock import Mark, Slice, clock_of
from autopart.runtime.execution.faults import LostPeer
from autopart.runtime.execution.gradient_sum import GradientSum
from autopart.runtime.execution.messages import Program, Receive, Send
from autopart.runtime.execution.stage import Leaves, TorchStage, stage_buffers, stage_parameters
from autopart.schedule import Action

T = TypeVar("T")

MAX_SENDS = 2
"""Sends under way at once; the next one waits for the oldest to be received."""


class Watcher(Protocol):
    """Told what the rank is at, so that someone can say where it was when it died."""

    def working(self, on: str) -> None:
        """The rank computes."""
        ...

    def waiting(self, on: str, peer: int | None) -> None:
        """The rank waits for another one."""
        ...


class StepTrace(NamedTuple):
    """Where one rank's time went in one step, in seconds."""

    slices: tuple[Slice, ...]
    blocked_time: float
    """Waiting until sends were received."""
    sync_time: float
    """Summing gradients over replicas and tied copies, and waiting for them."""
    end: float
    """From the start of the step to the end of the sums."""
    core_time: float | None
    """What this thread had of a core during the actions, on a CPU with one thread: less than they
    took where other processes wanted the cores too."""


class Executor:
    """One rank's stage and its program; a rank without a stage takes part in nothing but sums."""

    def __init__(
        self,
        stage: TorchStage | None,
        program: Program,
        sums: GradientSum,
        *,
        num_microbatches: int,
        device: torch.device,
        watcher: Watcher,
    ) -> None:
        self.stage = stage
        self._program = program
        self._sums = sums
        self._num_microbatches = num_microbatches
        self._clock = clock_of(device)
        self._has_core_time = device.type == "cpu" and torch.get_num_threads() == 1
        self._watcher = watcher
        self._marks: _Marks | None = None

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Those of this rank's stage by the user's names, for an optimizer."""
        return {} if self.stage is None else stage_parameters(self.stage.program)

    @property
    def buffers(self) -> dict[str, torch.Tensor]:
        """Those of this rank's stage by the user's names."""
        return {} if self.stage is None else stage_buffers(self.stage.program)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors of the batch that this rank's stage reads."""
        return () if self.stage is None else self.stage.program.inputs

    @property
    def microbatches(self) -> tuple[int, ...]:
        """The microbatches that this rank was dealt."""
        actions = [event for event in self._program if isinstance(event, Action)]
        return tuple(sorted({action.microbatch for action in actions}))

    def step(self, microbatches: Mapping[int, Leaves]) -> torch.Tensor | None:
        """Run one batch: afterwards every parameter's ``grad`` is that of the batch's mean loss.

        `microbatches` holds, for each microbatch that this rank was dealt, the tensors that its
        stage reads. Gradients must be None or zero before. Gives, on a rank of the last stage, its
        share of the loss: the sum over its microbatches divided by the number of all microbatches.
        Raises LostPeer where another rank is gone.
        """
        marks = self._marks = _Marks(self._clock.mark())
        run = _Run(self.stage, microbatches, 1.0 / self._num_microbatches)
        for event in self._program:
            if isinstance(event, Receive):
                run.post(event)
            elif isinstance(event, Send):
                run.send(event)
                self._drain(run, MAX_SENDS, marks)
            else:
                self._act(event, run, marks)
        self._drain(run, 0, marks)
        marks.acted = self._clock.mark()
        self._watcher.waiting("the sum of gradients", None)
        _carried(self._sums.run, None, "the sum of gradients")
        marks.summed = self._clock.mark()
        return run.loss

    def trace(self) -> StepTrace:
        """The last step's times; waits until its work is done."""
        marks, seconds = self._marks, self._clock.seconds
        assert marks is not None and marks.acted is not None and marks.summed is not None
        self._clock.wait()
        slices = tuple(
            Slice(action, *(seconds(marks.begin, mark) for mark in times))
            for action, times in marks.actions
        )
        return StepTrace(
            slices=slices,
            blocked_time=sum(seconds(start, end) for start, end in marks.blocked),
            sync_time=seconds(marks.acted, marks.summed),
            end=seconds(marks.begin, marks.summed),
            core_time=marks.core_time if self._has_core_time else None,
        )

    def _act(self, action: Action, run: "_Run", marks: "_Marks") -> None:
        start = self._clock.mark()
        peer = run.sender(action)
        if peer is not None:
            self._watcher.waiting(str(action), peer)
        needed = run.arrived(action)
        self._watcher.working(str(action))
        ready, core = self._clock.mark(), time.thread_time()
        run.compute(action, needed)
        marks.actions.append((action, (start, ready, self._clock.mark())))
        marks.core_time += time.thread_time() - core

    def _drain(self, run: "_Run", most: int, marks: "_Marks") -> None:
        """Wait until at most `most` sends are under way."""
        while len(run.sends) > most:
            send = run.sends.popleft()
            start = self._clock.mark()
            self._watcher.waiting(f"{send.action}'s results being received", send.peer)
            send.wait()
            marks.blocked.append((start, self._clock.mark()))


@dataclass(slots=True)
class _Marks:
    """Points in one step, told apart later: on a GPU they lie ahead when they are made."""

    begin: Mark
    actions: list[tuple[Action, tuple[Mark, Mark, Mark]]] = field(default_factory=list)
    blocked: list[tuple[Mark, Mark]] = field(default_factory=list)
    core_time: float = 0.0
    acted: Mark | None = None
    summed: Mark | None = None


class _Message(NamedTuple):
    """Tensors on their way; the buffers must live until they have arrived."""

    action: Action
    peer: int
    tensors: tuple[torch.Tensor, ...]
    works: tuple[distributed.Work, ...]

    def wait(self) -> None:
        for work in self.works:
            _carried(work.wait, self.peer, str(self.action))


class _Run:
    """What one rank holds in the middle of a step."""

    def __init__(
        self, stage: TorchStage | None, microbatches: Mapping[int, Leaves], loss_scale: float
    ) -> None:
        self._stage = stage
        self._microbatches = microbatches
        self._loss_scale = loss_scale
        self._arriving: dict[Action, _Message] = {}
        self._results: dict[Action, tuple[torch.Tensor, ...]] = {}
        self.sends: deque[_Message] = deque()
        self.loss: torch.Tensor | None = None

    def post(self, event: Receive) -> None:
        assert self._stage is not None
        program = self._stage.program
        metas = program.received_meta if event.action.op == "F" else program.output_meta
        buffers = tuple(
            torch.empty(meta.shape, dtype=meta.dtype, device=self._stage.device)
            for meta in metas
            if event.action.op == "F" or meta.requires_grad
        )
        works = _carry(distributed.irecv, buffers, event.peer, event.action)
        self._arriving[event.action] = _Message(event.action, event.peer, buffers, works)

    def send(self, event: Send) -> None:
        tensors = self._results.pop(event.action)
        works = _carry(distributed.isend, tensors, event.peer, event.action)
        self.sends.append(_Message(event.action, event.peer, tensors, works))

    def sender(self, action: Action) -> int | None:
        message = self._arriving.get(action)
        return None if message is None else message.peer

    def arrived(self, action: Action) -> tuple[torch.Tensor, ...]:
        message = self._arriving.pop(action, None)
        if message is None:
            return ()
        message.wait()
        return message.tensors

    def compute(self, action: Action, needed: tuple[torch.Tensor, ...]) -> None:
        stage = self._stage
        assert stage is not None and action.stage == stage.stage_index
        if action.op == "B":
            results = stage.backward(action.microbatch, needed, self._loss_scale)
        else:
            leaves = self._microbatches[action.microbatch]
            results = stage.forward(action.microbatch, needed, leaves)
        if action.op == "F" and stage.is_last:
            share = results[0] * self._loss_scale
            self.loss = share if self.loss is None else self.loss + share
        elif not (action.op == "B" and stage.is_first):
            self._results[action] = results


def _carry(
    transfer: Callable[[torch.Tensor, int], distributed.Work | None],
    tensors: Sequence[torch.Tensor],
    peer: int,
    action: Action,
) -> tuple[distributed.Work, ...]:
    works = [_carried(partial(transfer, tensor, peer), peer, str(action)) for tensor in tensors]
    return tuple(work for work in works if work is not None)


def _carried(deed: Callable[[], T], peer: int | None, waiting_for: str) -> T:
    """Do what needs another rank. Every transport reports a peer that is gone, or that is late
    beyond the process group's timeout, as a RuntimeError."""
    try:
        return deed()
    except RuntimeError as error:
        raise LostPeer(peer, waiting_for, " ".join(str(error).split())) from error
