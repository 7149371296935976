"""A board in the job's key-value store where each rank notes what it is at.

A note costs a few microseconds and survives its writer: when a rank is killed, its last note says
which action it was on. Whoever learns first that the run cannot go on claims the failure; everyone
else finds it on the board and stops. A run in which no rank notes anything new for the timeout is
stuck, and the rank that is working, not waiting, is the one to name.
"""

# pyright: reportPrivateImportUsage=false

import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NamedTuple

import msgspec
from torch import distributed

from autopart.runtime.execution.faults import Failure

SETTING_UP = 10.0
"""Building and capturing a model, or running it whole, may take this many times the timeout."""

LEAVE_SECONDS = 5.0
"""How long a process whose run failed may take to end by itself."""

_FAILURE = "failure"


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank is at."""

    count: int
    """Grows with every note of the rank."""
    on: str
    state: str
    """working, waiting or done"""
    peer: int | None = None
    """The rank that it waits for, if it is one."""
    patience: float = 1.0
    """How many timeouts this may take."""
    step: int = 0
    """Steps that the rank has done."""
    speed: float = 0.0
    """Samples a second in the last step; 0 before the first is done."""


class Board:
    """One process's view of the board; a Watcher for the executor."""

    def __init__(self, store: distributed.Store, rank: int | None, num_ranks: int) -> None:
        """`rank` is None for a reader that is no rank itself."""
        self._store = store
        self._rank = rank
        self._num_ranks = num_ranks
        self._count = 0
        self.step = 0
        self.speed = 0.0
        self.last: Note | None = None

    def working(self, on: str, patience: float = 1.0) -> None:
        """This rank computes."""
        self._note(on, "working", None, patience)

    def waiting(self, on: str, peer: int | None) -> None:
        """This rank waits, for `peer` or for several."""
        self._note(on, "waiting", peer, 1.0)

    def done(self) -> None:
        """This rank has finished its run."""
        self._note("nothing more", "done", None, 1.0)

    def notes(self) -> list[Note | None]:
        """Each rank's last note; None for a rank that never wrote one."""
        return [self._read(rank) for rank in range(self._num_ranks)]

    def claim(self, failure: Failure) -> Failure:
        """Write why the run stops, unless someone else has: gives what stands there then."""
        written = self._store.compare_set(_FAILURE, "", msgspec.json.encode(failure).decode())
        return msgspec.json.decode(written, type=Failure)

    def failure(self) -> Failure | None:
        """Why the run stops, if it does."""
        if not self._store.check([_FAILURE]):
            return None
        return msgspec.json.decode(self._store.get(_FAILURE), type=Failure)

    def _note(self, on: str, state: str, peer: int | None, patience: float) -> None:
        self._count += 1
        self.last = Note(
            count=self._count,
            on=on,
            state=state,
            peer=peer,
            patience=patience,
            step=self.step,
            speed=self.speed,
        )
        self._store.set(_key(self._rank), msgspec.json.encode(self.last).decode())

    def _read(self, rank: int) -> Note | None:
        if not self._store.check([_key(rank)]):
            return None
        return msgspec.json.decode(self._store.get(_key(rank)), type=Note)


class Stuck(NamedTuple):
    """A run that does not go on."""

    rank: int
    on: str
    seconds: float


class Progress:
    """Says when a run has stood still for too long, and at whom."""

    def __init__(self, timeout: float, now: float) -> None:
        self._timeout = timeout
        self._seen: list[int] = []
        self._changed: list[float] = []
        self._begin = now

    def look(self, notes: Sequence[Note | None], now: float) -> Stuck | None:
        """Compare with the notes of earlier looks; None while some rank goes on."""
        counts = [0 if note is None else note.count for note in notes]
        if not self._seen:
            self._seen, self._changed = [0] * len(counts), [self._begin] * len(counts)
        for rank, count in enumerate(counts):
            if count != self._seen[rank]:
                self._seen[rank], self._changed[rank] = count, now
        patience = max((SETTING_UP if n is None else n.patience) for n in notes)
        still = now - max(self._changed)
        if still <= self._timeout * patience or all(n and n.state == "done" for n in notes):
            return None
        return self._stuck(notes, still)

    def _stuck(self, notes: Sequence[Note | None], still: float) -> Stuck:
        """Name the working rank that moved last longest ago; if all wait, the one so waiting."""
        suspects = [r for r, n in enumerate(notes) if n is None or n.state == "working"]
        suspects = suspects or [r for r, n in enumerate(notes) if n and n.state == "waiting"]
        rank = min(suspects, key=lambda r: self._changed[r])
        return Stuck(rank, describe(notes[rank]), still)


def describe(note: Note | None) -> str:
    """Where a rank is, or was: `1F3`, `waiting for rank 0 on 1F3`."""
    if note is None:
        return "starting up"
    if note.state != "waiting":
        return note.on
    return f"{note.on}, waiting for {'the others' if note.peer is None else f'rank {note.peer}'}"


def stuck_failure(stuck: Stuck) -> Failure:
    """A run that stands still, as a failure of the rank that it stands still at."""
    return Failure(
        rank=stuck.rank,
        message=(
            f"rank {stuck.rank} hangs on {stuck.on}: no rank made progress for "
            f"{stuck.seconds:.0f} s; if one action may take that long, raise the timeout"
        ),
    )


class Guard(threading.Thread):
    """Ends this process when the run has failed elsewhere, stands still, or has lost its store.

    It is the only way out of a wait inside torch, which no exception reaches.
    """

    def __init__(self, board: Board, timeout: float, last_words: Callable[[Failure], None]) -> None:
        """`board` must have a connection of its own; `last_words` are said by the one process that
        finds the run stuck."""
        super().__init__(name="autopart-guard", daemon=True)
        self._board = board
        self._progress = Progress(timeout, time.monotonic())
        self._interval = min(1.0, timeout / 4)
        self._last_words = last_words
        self._calm = threading.Event()
        self._leaving = threading.Event()

    def stand_down(self) -> None:
        """The run is over and went well."""
        self._calm.set()

    def leave_soon(self) -> None:
        """The run has failed here: give the process `LEAVE_SECONDS` to say why and end by itself."""
        self._leaving.set()

    def run(self) -> None:
        while not self._calm.wait(self._interval):
            if self._leaving.is_set() or self._is_over():
                self._calm.wait(LEAVE_SECONDS if self._leaving.is_set() else self._interval)
                os._exit(1)

    def _is_over(self) -> bool:
        try:
            if self._board.failure() is not None:
                return True
            stuck = self._progress.look(self._board.notes(), time.monotonic())
            if stuck is None:
                return False
            mine = stuck_failure(stuck)
            if self._board.claim(mine) == mine:
                self._last_words(mine)
        except RuntimeError:  # The store's host is gone, and with it whoever started this run.
            pass
        return True


def connect(host: str, port: int, attempt: str, seconds: float) -> distributed.Store:
    """A new connection to the job's store, which must be there within `seconds`."""
    timeout = timedelta(seconds=seconds)
    store = distributed.TCPStore(
        host, port, None, is_master=False, timeout=timeout, wait_for_workers=False
    )
    return job_store(store, attempt)


def job_store(store: distributed.Store, attempt: str) -> distributed.Store:
    """The part of the store that is ours. Whoever starts a job again counts `attempt` up, so that
    the notes of the last attempt are not read."""
    return distributed.PrefixStore(f"autopart/{attempt}", store)


def _key(rank: int | None) -> str:
    return f"rank/{rank}"
