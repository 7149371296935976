"""Runs one rank's program, event by event. The loop itself decides nothing.

    receive   allocate memory for a message and start to receive it in the background
    F, B, I   wait for the action's inputs, then compute
    pair      wait for the inputs of both actions, then compute both together
    W         compute the weight gradients that I deferred
    send      start to send an action's results in the background
    L, T      start to move a stash in the background; it is over before the action after the next
    update    step the optimizer, in an asynchronous schedule

At most `MAX_SENDS` sends are in progress. A message has memory only from its receive to its action.
So memory does not grow with the number of microbatches, except as the schedule's in-flight count
does. What can be freed by then is freed before each group of receives, as in the predicted peak.
"""

import itertools
import time
from collections.abc import Callable, Collection

from autopart.runtime.engine.buffers import Buffers, Tensors
from autopart.runtime.engine.lending import StashMoves
from autopart.runtime.engine.transfers import Message
from autopart.runtime.measuring.clock import DeviceClock, Mark
from autopart.runtime.measuring.side_by_side import SideBySide
from autopart.runtime.measuring.step_trace import Marks
from autopart.runtime.measuring.watcher import Watcher
from autopart.schedules.actions import Action, PairedForward
from autopart.schedules.in_flight import MAX_SENDS
from autopart.schedules.lending import MOVES
from autopart.schedules.messages import Program, Receive, Send, Update

Compute = Callable[[Action, Tensors], None]


class ProgramLoop:
    """Runs a program on one rank's buffers, and records the time of each action."""

    def __init__(
        self,
        buffers: Buffers,
        marks: Marks,
        clock: DeviceClock,
        watcher: Watcher,
        pairs: SideBySide | None = None,
        moves: StashMoves | None = None,
    ) -> None:
        """`pairs` runs overlapped pairs, `moves` moves stash; None where the program has none."""
        self._buffers = buffers
        self._pairs = pairs
        self._moves = moves or StashMoves()
        self._marks = marks
        self._clock = clock
        self._watcher = watcher

    def run(
        self,
        program: Program,
        compute: Compute | None = None,
        update: Callable[[Update], None] | None = None,
    ) -> None:
        """Run all events. `compute` replaces the buffers' own; `update` runs the optimizer."""
        paired: Action | None = None
        for at, event in enumerate(program):
            if isinstance(event, Receive):
                if not at or not isinstance(program[at - 1], Receive):
                    self._free_sent(program, at)
                # The receive itself never blocks: it allocates memory and tells the transport.
                self._buffers.post(event)
            elif isinstance(event, Send):
                # A send starts in the background; too many in progress block the rank here.
                self._buffers.send(event)
                self._wait_for_sends(MAX_SENDS)
            elif isinstance(event, Update):
                assert update is not None
                update(event)
            elif isinstance(event, PairedForward):
                paired = next(e for e in program[at + 1 :] if isinstance(e, Action))
                self._act_together(event, paired, compute or self._buffers.compute)
            elif event.op in MOVES:
                self._finish_move(self._moves.under_way)
                if event.op == "L":
                    # A result that is part of the stash leaves with it.
                    self._free_results({event})
                self._buffers.start_move(self._moves, event)
            elif event == paired:
                # It ran beside its forward.
                paired = None
            else:
                self._act(event, compute or self._buffers.compute)
        # The step ends when every send has been received, and all stash is back.
        self._wait_for_sends(0)
        self._give_back()

    def _act_together(self, forward: Action, backward: Action, compute: Compute) -> None:
        """Run an overlapped pair. Its backward has the time from the end of its forward on."""
        assert self._pairs is not None
        start = self._clock.mark()
        needed = [self._needed(action) for action in (forward, backward)]
        self._watcher.working(f"{forward} beside {backward}")
        ready, core = self._clock.mark(), time.thread_time()

        def run_forward() -> tuple[Mark, float]:
            compute(forward, needed[0])
            return self._clock.mark(), time.thread_time()

        def run_backward() -> Tensors:
            compute(backward, needed[1])
            return (*self._buffers.made(forward), *self._buffers.made(backward))

        graphs = [(action.stage, action.microbatch) for action in (forward, backward)]
        middle, core_then = self._pairs.run(run_forward, run_backward, *graphs)
        end = self._clock.mark()
        self._marks.add(forward, (start, ready, middle), core_then - core)
        self._marks.add(backward, (middle, middle, end), time.thread_time() - core_then)

    def _needed(self, action: Action) -> Tensors:
        """The action's inputs, once they are there."""
        other_rank = self._buffers.sender(action)
        if other_rank is not None:
            self._watcher.waiting(str(action), other_rank)
        return self._buffers.needed(action)

    def _act(self, action: Action, compute: Compute) -> None:
        self._finish_move(self._moves.due())
        # Step 1: wait for the action's inputs.
        start = self._clock.mark()
        needed = self._needed(action)
        # Step 2: compute. The status board then shows this rank as working, not as waiting.
        self._watcher.working(str(action))
        ready, core = self._clock.mark(), time.thread_time()
        compute(action, needed)
        end = self._clock.mark()
        self._marks.add(action, (start, ready, end), time.thread_time() - core)

    def _wait_for_sends(self, most: int) -> None:
        """Wait until at most `most` sends are in progress, oldest first."""
        while len(self._buffers.sends) > most:
            self._wait_for(self._buffers.sends.popleft())

    def _wait_for(self, send: Message) -> None:
        self._watcher.waiting(f"{send.action}'s results being received", send.other_rank)
        self._blocked(send.wait)

    def _finish_move(self, move: Message | None) -> None:
        """Wait until the move is over; None where there is none."""
        if move is not None:
            self._watcher.waiting(str(move.action), move.other_rank)
            self._blocked(self._moves.finish)

    def _give_back(self) -> None:
        """Wait until another rank has all its stash back."""
        lender = self._moves.lender_here
        if lender is not None:
            self._watcher.waiting(f"the stash of rank {lender} going back", lender)
            self._blocked(self._moves.end)

    def _free_sent(self, program: Program, at: int) -> None:
        """Free what the receives from place `at` on replace.

        A send that follows them takes the place of the oldest one. And a forward's result has long arrived where
        its gradient is sent.
        """
        group = list(itertools.takewhile(lambda e: isinstance(e, Receive), program[at:]))
        behind = at + len(group)
        if behind < len(program) and isinstance(program[behind], Send):
            self._wait_for_sends(MAX_SENDS - 1)
        needed = {e.action for e in group if isinstance(e, Receive) and e.action.op != "F"}
        self._free_results(needed)

    def _free_results(self, actions: Collection[Action]) -> None:
        """Free the results that the forwards of these actions' microbatches have sent, once they have arrived.

        Peers have made room for them earlier. The sends still count as in progress, as in the predicted peak:
        otherwise an older one would stay longer in their place.
        """
        forwards = {Action(action.stage, "F", action.microbatch) for action in actions}
        sends = self._buffers.sends
        for place, send in enumerate(list(sends)):
            if send.action in forwards:
                self._wait_for(send)
                sends[place] = send._replace(tensors=(), works=())

    def _blocked(self, wait: Callable[[], None]) -> None:
        start = self._clock.mark()
        wait()
        self._marks.blocked.append((start, self._clock.mark()))
