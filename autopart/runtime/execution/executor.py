"""Runs one rank's part of a step: its program, event by event. It decides nothing.

    receive   make fresh room for a message and let it arrive in the background
    F, B, I   wait for what the action needs, then let the stage compute
    W         compute what I has put off
    send      hand the results to the peer in the background

At most `MAX_SENDS` sends are under way, and room for a message exists only from its receive to
its action, so nothing grows with the number of microbatches but what the schedule holds.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch

from autopart.runtime.execution.clock import Mark, Slice, clock_of
from autopart.runtime.execution.gradient_sum import GradientSum
from autopart.runtime.execution.held import Held, Stages
from autopart.runtime.execution.messages import Program, Receive, Send
from autopart.runtime.execution.stage import Leaves, stage_buffers, stage_parameters
from autopart.runtime.execution.transfers import BETWEEN_RANKS, Transfers, carried
from autopart.schedule import Action

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
    begun: float = 0.0
    """When the step began, on the host's monotonic clock, which all processes of a host share."""


class Executor:
    """One rank's stages and its program; a rank without a stage takes part in nothing but sums."""

    def __init__(
        self,
        stages: Stages,
        program: Program,
        sums: GradientSum,
        *,
        num_microbatches: int,
        device: torch.device,
        watcher: Watcher,
        owned: Sequence[str] = (),
        transfers: Transfers = BETWEEN_RANKS,
    ) -> None:
        self.stages = dict(stages)
        self.device = device
        self.owned = tuple(owned)
        """Those of this rank's parameters that no rank before it holds: over all ranks, each
        parameter of the model once."""
        self._program = program
        self._sums = sums
        self._num_microbatches = num_microbatches
        self._clock = clock_of(device)
        self._has_core_time = device.type == "cpu" and torch.get_num_threads() == 1
        self._watcher = watcher
        self._transfers = transfers
        self._marks: _Marks | None = None

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Those of this rank's stages by the user's names, for an optimizer."""
        programs = [stage.program for stage in self.stages.values()]
        return {name: p for program in programs for name, p in stage_parameters(program).items()}

    @property
    def buffers(self) -> dict[str, torch.Tensor]:
        """Those of this rank's stages by the user's names."""
        programs = [stage.program for stage in self.stages.values()]
        return {name: b for program in programs for name, b in stage_buffers(program).items()}

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors of the batch that this rank's stages read."""
        read = [name for stage in self.stages.values() for name in stage.program.inputs]
        return tuple(dict.fromkeys(read))

    @property
    def microbatches(self) -> tuple[int, ...]:
        """The microbatches that this rank was dealt."""
        actions = [event for event in self._program if isinstance(event, Action)]
        return tuple(sorted({action.microbatch for action in actions}))

    def step(
        self, microbatches: Mapping[int, Leaves], *, scale: float = 1.0, sync: bool = True
    ) -> torch.Tensor | None:
        """Run one batch: afterwards every parameter's ``grad`` is that of the batch's mean loss,
        times `scale`, added to what was there.

        `microbatches` holds, for each microbatch that this rank was dealt, the tensors that its
        stages read. Where gradients of several batches are to add up, `sync` must be False for all
        but the last: sums over replicas and tied copies are made once, of everything, and after
        them ``grad`` must be cleared. Gives, on a rank of the last stage, its share of the loss: the
        sum over its microbatches divided by the number of all microbatches, without `scale`.
        Raises LostPeer where another rank is gone.
        """
        marks = self._marks = _Marks(self._clock.mark(), time.perf_counter())
        held = Held(self.stages, microbatches, scale / self._num_microbatches, self._transfers)
        for event in self._program:
            if isinstance(event, Receive):
                held.post(event)
            elif isinstance(event, Send):
                held.send(event)
                self._drain(held, MAX_SENDS, marks)
            else:
                self._act(event, held, marks)
        self._drain(held, 0, marks)
        marks.acted = self._clock.mark()
        if sync:
            self._watcher.waiting("the sum of gradients", None)
            carried(self._sums.run, None, "the sum of gradients")
        marks.summed = self._clock.mark()
        return None if held.loss is None else held.loss / self._num_microbatches

    def trace(self) -> StepTrace:
        """The last step's times; waits until its work is done."""
        marks, seconds = self._marks, self._clock.seconds
        assert marks is not None and marks.acted is not None and marks.summed is not None
        self._clock.wait()
        slices = tuple(
            Slice(action, *(seconds(marks.begin, mark) for mark in times), core=core)
            for action, times, core in marks.actions
        )
        return StepTrace(
            slices=slices,
            blocked_time=sum(seconds(start, end) for start, end in marks.blocked),
            sync_time=seconds(marks.acted, marks.summed),
            end=seconds(marks.begin, marks.summed),
            begun=marks.begun,
        )

    def _act(self, action: Action, held: Held, marks: "_Marks") -> None:
        start = self._clock.mark()
        peer = held.sender(action)
        if peer is not None:
            self._watcher.waiting(str(action), peer)
        needed = held.needed(action)
        self._watcher.working(str(action))
        ready, core = self._clock.mark(), time.thread_time()
        held.compute(action, needed)
        end, had = self._clock.mark(), time.thread_time() - core
        marks.actions.append((action, (start, ready, end), had if self._has_core_time else None))

    def _drain(self, held: Held, most: int, marks: "_Marks") -> None:
        """Wait until at most `most` sends are under way."""
        while len(held.sends) > most:
            send = held.sends.popleft()
            start = self._clock.mark()
            self._watcher.waiting(f"{send.action}'s results being received", send.peer)
            send.wait()
            marks.blocked.append((start, self._clock.mark()))


@dataclass(slots=True)
class _Marks:
    """Points in one step, told apart later: on a GPU they lie ahead when they are made."""

    begin: Mark
    begun: float
    actions: list[tuple[Action, tuple[Mark, Mark, Mark], float | None]] = field(
        default_factory=list
    )
    blocked: list[tuple[Mark, Mark]] = field(default_factory=list)
    acted: Mark | None = None
    summed: Mark | None = None
