"""Heartbeats of the ranks in a probe, by which a rank that died is named.

A thread on each rank writes a note to the job's store twice per second. When a message fails, some
rank may be gone, but a collective does not tell which. Then the rank whose notes have ended is
named, with its host. NCCL does not even fail: it waits. So two ranks look at all notes now and then.

torchrun ends the other ranks of a node, by SIGTERM, right after it has seen one die. Their notes end
too. So each of them first notes that it was stopped.
"""

# pyright: reportPrivateImportUsage=false

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from torch import distributed

from autopart.errors import AutopartError, RunError
from autopart.runtime.engine.failures import Failure, LostRank
from autopart.runtime.job.meeting import connect_to, leave_last
from autopart.runtime.job.status_board import Note, StatusBoard, describe
from autopart.runtime.job.world import World

BEAT = 0.5
"""Seconds between two notes of a rank."""
GONE = 3.0
"""Seconds without a note after which a rank is gone, once a message has failed."""
_PATIENCE = 8.0
"""Seconds to find the rank that is gone."""
_LOOK = 5.0
"""Seconds between two looks at all notes while nothing has failed."""
_SILENT = 30.0
"""Seconds without a note after which a rank is gone, though no message has failed."""
_LOOKERS = 2
"""Ranks that look, so that one of them may die."""
_LINGER = 5.0
"""Seconds that a rank waits without torchrun, so that another rank can tell the error first."""


class Beats:
    """When each rank's note last changed, by this process's clock."""

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._changed: list[float] = []

    def gone(self, notes: Sequence[Note | None], now: float, seconds: float) -> int | None:
        """Return the rank whose notes ended first, at least so many seconds ago; else None."""
        counts = [0 if note is None else note.count for note in notes]
        if not self._counts:
            self._counts, self._changed = counts, [now] * len(counts)
        for rank, count in enumerate(counts):
            if count != self._counts[rank]:
                self._counts[rank], self._changed[rank] = count, now
        # A rank that has ended, or was stopped, has said so.
        still = [
            rank
            for rank, note in enumerate(notes)
            if note is not None and note.state != "done" and now - self._changed[rank] >= seconds
        ]
        return min(still, key=lambda rank: self._changed[rank], default=None)


class Watch:
    """A rank's own heartbeat, and its view of the others'."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._board = board_of(connect_to(world), world)
        self._telling = threading.Lock()
        self._on = "starting up"
        self.hosts: Sequence[str] = ()
        """Each rank's host, once the ranks have met."""

    def doing(self, on: str) -> None:
        """Tell what this rank does, for its next note."""
        self._on = on

    def beat(self) -> None:
        """Write a note."""
        self._board.working(self._on)

    def end(self) -> None:
        """Note that this rank ends by itself."""
        with suppress(RuntimeError):  # The store may be gone.
            self._board.done()

    def account(self, error: AutopartError) -> AutopartError | None:
        """Return the error to raise, or None where another rank tells it."""
        with self._telling:
            try:
                if self._board.failure() is not None:
                    return None
                named = self._gone() if isinstance(error.__cause__, LostRank) else None
                return self._claimed(error if named is None else RunError(self._words(named)))
            except RuntimeError:  # The store is gone too.
                error.rank = self._world.rank
                return error

    def look(self, beats: Beats) -> bool:
        """Return whether the probe has failed. Tell so, if this rank is the first to see it."""
        if self._board.failure() is not None:
            return True
        if self._world.rank >= _LOOKERS:
            return False
        gone = beats.gone(self._board.notes(), time.monotonic(), _SILENT)
        if gone is None:
            return False
        self._tell(gone)
        return True

    def stopped(self) -> None:
        """Note that torchrun stops this rank, and tell which other one died before."""
        self.end()
        with self._telling, suppress(RuntimeError):
            if self._board.failure() is None and (gone := self._gone()) is not None:
                self._tell(gone)

    def _tell(self, gone: int) -> None:
        told = self._claimed(RunError(self._words(gone)))
        if told is not None:
            sys.stderr.write(f"error: {told}\n")
            sys.stderr.flush()

    def _claimed(self, error: AutopartError) -> AutopartError | None:
        mine = Failure(rank=self._world.rank, message=str(error))
        if not self._board.claim(mine):
            return None
        error.rank = self._world.rank
        return error

    def _gone(self) -> int | None:
        beats, until = Beats(), time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            notes = self._board.notes()
            gone = beats.gone(notes, time.monotonic(), GONE)
            others = (note for rank, note in enumerate(notes) if rank != self._world.rank)
            if gone is not None or all(note is None or note.state == "done" for note in others):
                return gone
            time.sleep(BEAT / 2)
        return None

    def _words(self, rank: int) -> str:
        host = f" on host {self.hosts[rank]}" if self.hosts else ""
        return (
            f"rank {rank}{host} is gone; it was last on {describe(self._board.notes()[rank])}; see its "
            "own output for the reason"
        )


def board_of(store: distributed.Store, world: World) -> StatusBoard:
    """Return the probe's status board in the job's store."""
    return StatusBoard(distributed.PrefixStore("probe", store), world.rank, world.size)


@contextmanager
def watched(world: World) -> Generator[Watch]:
    """Beat until the block ends. Raise SystemExit where another rank tells this one's error.

    The job's store must exist. SIGTERM is heard in the main thread only.
    """
    watch = Watch(world)
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    hears = threading.current_thread() is threading.main_thread()
    # Without a handler the signal would end the process at once. The thread below ends it.
    handler = signal.signal(signal.SIGTERM, _heard) if hears else None
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False) if hears else -1
    thread = threading.Thread(target=_beat, args=(watch, reading), name="probe-watch", daemon=True)
    thread.start()
    try:
        yield watch
    except AutopartError as error:
        told = watch.account(error)
        if told is None:
            leave_last(world)
            time.sleep(_LINGER)
            raise SystemExit(1) from error
        raise told from error
    finally:
        watch.end()
        if hears:
            signal.signal(signal.SIGTERM, handler)
            signal.set_wakeup_fd(before)
        # The thread reads the end of the stream, and ends.
        writing.close()
        thread.join(_LINGER)
        reading.close()


def _heard(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the thread reads the signal from its socket."""


def _beat(watch: Watch, reading: socket.socket) -> None:
    """Beat until the socket ends. End the process where it was stopped, or the probe has failed."""
    beats, looked, leave_at = Beats(), time.monotonic(), float("inf")
    # The store may be gone. Then the main thread learns it too.
    with suppress(RuntimeError):
        while True:
            if select.select([reading], [], [], BEAT)[0]:
                heard = reading.recv(4096)
                if not heard:
                    return
                if signal.SIGTERM in heard:
                    watch.stopped()
                    os._exit(128 + signal.SIGTERM)
            watch.beat()
            if time.monotonic() > leave_at:
                os._exit(1)
            if time.monotonic() - looked > _LOOK:
                looked = time.monotonic()
                # The main thread may be inside NCCL, which does not fail.
                if leave_at == float("inf") and watch.look(beats):
                    leave_at = time.monotonic() + 2 * _PATIENCE
