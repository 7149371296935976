"""The status board: each rank notes its current action in the job's key-value store.

A note costs a few microseconds and outlives its writer. If a rank is killed, its last note names
the action. The first process that learns of a failure claims it on the board; others find it there
and stop. A run is stuck if no rank writes a new note for the timeout. The failure then names a rank
that works, not one that waits.
"""

# pyright: reportPrivateImportUsage=false

import contextlib
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NamedTuple

import msgspec
from torch import distributed

from autopart.runtime.engine.failures import Failure

SETTING_UP = 10.0
"""Timeouts that setting up may take: building, capturing or running the whole model."""

LEAVE_SECONDS = 20.0
"""Seconds that a process may take to tell why its run has failed, and to end by itself."""

INTERRUPT = "stopped from the keyboard"
INTERRUPTED = 130
"""The exit code after Ctrl-C (128 + SIGINT)."""

_FAILURE = "failure"


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """A rank's current activity."""

    count: int
    """Number of this note; each rank counts its own notes from 1."""
    on: str
    """The activity: an action such as `1F3`, or words."""
    state: str
    """working, waiting or done"""
    other_rank: int | None = None
    """The rank that this rank waits for; None if it waits for several or none."""
    patience: float = 1.0
    """Timeouts that the activity may take."""
    step: int = 0
    """Steps that the rank has completed."""
    speed: float = 0.0
    """Samples per second in the last step; 0 before the first is complete."""


class _Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A failure on the board, signed."""

    failure: Failure
    by: str


class StatusBoard:
    """One process's view of the status board. The executor uses it as its Watcher."""

    def __init__(self, store: distributed.Store, rank: int | None, num_ranks: int) -> None:
        """`rank` is None for a process that only reads, such as the launcher."""
        self._store = store
        self.rank = rank
        self._num_ranks = num_ranks
        self._count = 0
        self._signature = uuid.uuid4().hex
        self.step = 0
        self.speed = 0.0
        self.last: Note | None = None

    def working(self, on: str, patience: float = 1.0) -> None:
        """Note that this rank computes."""
        self._note(on, "working", None, patience)

    def waiting(self, on: str, other_rank: int | None) -> None:
        """Note that this rank waits for `other_rank`, or for several ranks if `other_rank` is None."""
        self._note(on, "waiting", other_rank, 1.0)

    def done(self) -> None:
        """Note that this rank has finished its run."""
        self._note("nothing more", "done", None, 1.0)

    def notes(self) -> list[Note | None]:
        """Each rank's last note; None for ranks without a note."""
        return [self._read(rank) for rank in range(self._num_ranks)]

    def claim(self, failure: Failure) -> bool:
        """Write a failure unless one is written already; return whether it is this board's own.

        Two ranks may claim equal failures at once. So each board signs its own.
        """
        signed = msgspec.json.encode(_Claim(failure=failure, by=self._signature))
        return self._store.compare_set(_FAILURE, "", signed.decode()) == signed

    def failure(self) -> Failure | None:
        """The failure on the board, if any."""
        if not self._store.check([_FAILURE]):
            return None
        return msgspec.json.decode(self._store.get(_FAILURE), type=_Claim).failure

    def _note(self, on: str, state: str, other_rank: int | None, patience: float) -> None:
        self._count += 1
        self.last = Note(
            count=self._count,
            on=on,
            state=state,
            other_rank=other_rank,
            patience=patience,
            step=self.step,
            speed=self.speed,
        )
        self._store.set(_key(self.rank), msgspec.json.encode(self.last).decode())

    def _read(self, rank: int) -> Note | None:
        if not self._store.check([_key(rank)]):
            return None
        return msgspec.json.decode(self._store.get(_key(rank)), type=Note)


class Stuck(NamedTuple):
    """A run without progress."""

    rank: int
    """The rank to name in the failure."""
    on: str
    """That rank's activity."""
    seconds: float
    """Time since any rank wrote a note."""


class StallDetector:
    """Detects that a run has stalled, and names the rank to blame.

    All times are in seconds, on any monotonic clock.
    """

    def __init__(self, timeout: float, now: float) -> None:
        self._timeout = timeout
        self._seen: list[int] = []
        self._changed: list[float] = []
        self._begin = now

    def look(self, notes: Sequence[Note | None], now: float) -> Stuck | None:
        """Compare `notes` with those from earlier calls; None while some rank makes progress."""
        # Step 1: note when each rank last wrote something new.
        counts = [0 if note is None else note.count for note in notes]
        if not self._seen:
            self._seen, self._changed = [0] * len(counts), [self._begin] * len(counts)
        for rank, count in enumerate(counts):
            if count != self._seen[rank]:
                self._seen[rank], self._changed[rank] = count, now
        # Step 2: the most patient activity decides. Ranks without a note are still starting up.
        patience = max((SETTING_UP if n is None else n.patience) for n in notes)
        still = now - max(self._changed)
        if still <= self._timeout * patience or all(n and n.state == "done" for n in notes):
            return None
        return self._stuck(notes, still)

    def _stuck(self, notes: Sequence[Note | None], still: float) -> Stuck:
        """Blame the working rank with the oldest note; if all wait, the waiting rank with it."""
        suspects = [r for r, n in enumerate(notes) if n is None or n.state == "working"]
        suspects = suspects or [r for r, n in enumerate(notes) if n and n.state == "waiting"]
        rank = min(suspects, key=lambda r: self._changed[r])
        return Stuck(rank, describe(notes[rank]), still)


def describe(note: Note | None) -> str:
    """A rank's activity in words: `1F3`, or `1F3, waiting for rank 0`."""
    if note is None:
        return "starting up"
    if note.state != "waiting":
        return note.on
    return f"{note.on}, waiting for {'the others' if note.other_rank is None else f'rank {note.other_rank}'}"


def stuck_failure(stuck: Stuck) -> Failure:
    """The failure for a stalled run."""
    return Failure(
        rank=stuck.rank,
        message=(
            f"rank {stuck.rank} hangs on {stuck.on}: no rank made progress for "
            f"{stuck.seconds:.0f} s; if one action may take that long, raise the timeout"
        ),
    )


class Ending(NamedTuple):
    """How a rank ends whose run has failed."""

    interrupted: Callable[[], bool]
    """Whether Ctrl-C was pressed. The main thread may be inside torch and not hear of it."""
    tell: Callable[[Failure], None]
    """Called in the one process that claims a failure, before it ends."""
    speaks: bool
    """Whether this rank tells an interrupt, which all ranks hear."""
    silent_seconds: float | None
    """Seconds to wait for the end where another rank tells the failure; None for one interval."""


class Guard(threading.Thread):
    """A thread that ends this process if the run fails elsewhere, stalls, or loses its store.

    Exceptions cannot interrupt a wait inside torch, so the guard ends the whole process.
    """

    def __init__(self, status_board: StatusBoard, timeout: float, ending: Ending) -> None:
        """`status_board` must have its own connection to the store."""
        super().__init__(name="autopart-guard", daemon=True)
        self._status_board = status_board
        self._stalls = StallDetector(timeout, time.monotonic())
        self._interval = min(1.0, timeout / 4)
        self._ending = ending
        self._stopped = threading.Event()
        self._leave_at = math.inf

    def stand_down(self) -> None:
        """Stop: the run has ended well."""
        self._stopped.set()

    def leave_soon(self, seconds: float = LEAVE_SECONDS) -> None:
        """End the process in so many seconds. The run has failed here, and the process tells why."""
        self._leave_at = time.monotonic() + seconds

    def claim_interrupt(self) -> None:
        """Let the other ranks know that Ctrl-C ended the run, so that they say nothing."""
        # The store is gone where its host heard of Ctrl-C first.
        with contextlib.suppress(RuntimeError):
            self._status_board.claim(Failure(rank=self._status_board.rank or 0, message=INTERRUPT))

    def run(self) -> None:
        # Each round: wait for the interval, then end the process if the run is over.
        while not self._stopped.wait(self._interval):
            if self._leave_at < math.inf:
                if time.monotonic() > self._leave_at:
                    os._exit(1)
            elif self._ending.interrupted():
                self._end_interrupted()
            else:
                self._end_if_over()

    def _end_interrupted(self) -> None:
        # The main thread ends by itself unless it is inside torch.
        if self._stopped.wait(self._interval) or self._leave_at < math.inf:
            return
        self.claim_interrupt()
        if self._ending.speaks:
            self._ending.tell(Failure(rank=self._status_board.rank or 0, message=INTERRUPT))
        os._exit(INTERRUPTED)

    def _end_if_over(self) -> None:
        try:
            if self._status_board.failure() is None:
                stuck = self._stalls.look(self._status_board.notes(), time.monotonic())
                if stuck is None:
                    return
                mine = stuck_failure(stuck)
                if self._status_board.claim(mine):
                    self._ending.tell(mine)
                    self._leave(self._interval)
                    return
            silent = self._ending.silent_seconds
            self._leave(self._interval if silent is None else silent)
        except RuntimeError:  # The store's host is gone, and it also started this run.
            self._leave(self._interval)

    def _leave(self, seconds: float) -> None:
        # The main thread knows better, if it has set an end meanwhile.
        self._leave_at = min(self._leave_at, time.monotonic() + seconds)


def connect(host: str, port: int, attempt: str, seconds: float) -> distributed.Store:
    """A new connection to the job's store. The store must appear within `seconds`."""
    timeout = timedelta(seconds=seconds)
    store = distributed.TCPStore(
        host, port, None, is_master=False, timeout=timeout, wait_for_workers=False
    )
    return job_store(store, attempt)


def job_store(store: distributed.Store, attempt: str) -> distributed.Store:
    """Our part of the store, for one attempt. A restarted job must not read earlier notes."""
    return distributed.PrefixStore(f"autopart/{attempt}", store)


def _key(rank: int | None) -> str:
    return f"rank/{rank}"
