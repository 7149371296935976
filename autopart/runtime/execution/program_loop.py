"""Runs one rank's program, event by event. It decides nothing.

    receive   make fresh room for a message and let it arrive in the background
    F, B, I   wait for what the action needs, then let the stage compute
    W         compute what I has put off
    send      hand the results to the peer in the background
    update    let the optimizer of an asynchronous schedule step

At most `MAX_SENDS` sends are under way, and room for a message exists only from its receive to
its action, so nothing grows with the number of microbatches but what the schedule holds.
"""

import time
from collections.abc import Callable

from autopart.runtime.execution.clock import Clock
from autopart.runtime.execution.held import Held, Tensors
from autopart.runtime.execution.messages import Program, Receive, Send, Update
from autopart.runtime.execution.step_trace import Marks
from autopart.runtime.execution.watcher import Watcher
from autopart.schedule import Action
from autopart.simulator.holding import MAX_SENDS

Compute = Callable[[Action, Tensors], None]


class ProgramLoop:
    """What a rank holds in a step, and where its time goes, while its program runs."""

    def __init__(self, held: Held, marks: Marks, clock: Clock, watcher: Watcher) -> None:
        self._held = held
        self._marks = marks
        self._clock = clock
        self._watcher = watcher

    def run(
        self,
        program: Program,
        compute: Compute | None = None,
        update: Callable[[Update], None] | None = None,
    ) -> None:
        """All events; `compute` stands in for the stages' own, `update` is for programs with some."""
        for event in program:
            if isinstance(event, Receive):
                self._held.post(event)
            elif isinstance(event, Send):
                self._held.send(event)
                self._drain(MAX_SENDS)
            elif isinstance(event, Update):
                assert update is not None
                update(event)
            else:
                self._act(event, compute or self._held.compute)
        self._drain(0)

    def _act(self, action: Action, compute: Compute) -> None:
        start = self._clock.mark()
        peer = self._held.sender(action)
        if peer is not None:
            self._watcher.waiting(str(action), peer)
        needed = self._held.needed(action)
        self._watcher.working(str(action))
        ready, core = self._clock.mark(), time.thread_time()
        compute(action, needed)
        end = self._clock.mark()
        self._marks.add(action, (start, ready, end), time.thread_time() - core)

    def _drain(self, most: int) -> None:
        """Wait until at most `most` sends are under way."""
        while len(self._held.sends) > most:
            send = self._held.sends.popleft()
            start = self._clock.mark()
            self._watcher.waiting(f"{send.action}'s results being received", send.peer)
            send.wait()
            self._marks.blocked.append((start, self._clock.mark()))
