"""The first moments of a run: ranks find the store and each other, or say who is missing."""

# pyright: reportPrivateImportUsage=false

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

from torch import distributed

from autopart.errors import RunError
from autopart.runtime.job.status_board import StatusBoard, connect, job_store
from autopart.runtime.job.world import World

T = TypeVar("T")

SILENT_SECONDS = 60.0
"""Seconds that a rank without a word waits for its end under torchrun.

torchrun kills all ranks as soon as one has ended with an error. So the rank that tells the error
must end first. The others wait until they are killed, at most so long.
"""

ANSWER_SECONDS = 60.0
"""Seconds that one answer of the store may take."""

_POLL_SECONDS = 0.05
_HERE = "127.0.0.1"
"""The host of the store to its own rank. Torch would try a wrong name again and again."""


def find_store(world: World, seconds: float) -> distributed.Store:
    """Serve the job's store on the rank that hosts it, and find it on other ranks.

    The store lives as long as the returned value on its host. Raises RunError where the port is
    taken, or where no store answers within so many seconds.
    """
    if world.hosts_store:
        return job_store(_served(world), world.attempt)
    until = time.monotonic() + seconds
    _await_port(world, seconds, until)
    return _in_time(lambda: connect_to(world), world, seconds, until)


def connect_to(world: World) -> distributed.Store:
    """A new connection to the job's store, which answers already."""
    host = _HERE if world.hosts_store else world.host
    return connect(host, world.port, world.attempt, ANSWER_SECONDS)


def _served(world: World) -> distributed.Store:
    try:
        return distributed.TCPStore(
            _HERE,
            world.port,
            None,
            is_master=True,
            timeout=timedelta(seconds=ANSWER_SECONDS),
            wait_for_workers=False,
        )
    except RuntimeError as error:
        taken = "EADDRINUSE" in str(error)
        cause = "another program has it" if taken else " ".join(str(error).split())[:80]
        raise RunError(
            f"rank 0 cannot serve port {world.port}: {cause}; set MASTER_PORT to a free port, on every rank"
        ) from None


def _await_port(world: World, seconds: float, until: float) -> None:
    # Torch itself would write pages of stack traces while nobody listens.
    while True:
        try:
            socket.create_connection((world.host, world.port), timeout=1.0).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise _unanswered(world, seconds) from None
            time.sleep(_POLL_SECONDS)


def _in_time(make: Callable[[], T], world: World, seconds: float, until: float) -> T:
    """The result of `make`. A program at the port that is no store may keep torch waiting for ever."""
    made: list[T] = []

    def work() -> None:
        with suppress(RuntimeError):
            made.append(make())

    thread = threading.Thread(target=work, name="autopart-store", daemon=True)
    thread.start()
    thread.join(max(1.0, until - time.monotonic()))
    if not made:
        raise _unanswered(world, seconds)
    return made[0]


def _unanswered(world: World, seconds: float) -> RunError:
    return RunError(
        f"rank {world.rank} of {world.size} found no store at {world.host} port {world.port} within "
        f"{seconds:.0f} s; start rank 0 there, or correct MASTER_ADDR and MASTER_PORT"
    )


def meet(status_board: StatusBoard, seconds: float) -> None:
    """Wait until every rank has written a note; raises RunError after so many seconds."""
    until = time.monotonic() + seconds
    while missing := [str(rank) for rank, note in enumerate(status_board.notes()) if note is None]:
        if time.monotonic() > until:
            who = f"rank {missing[0]}" if len(missing) == 1 else f"ranks {', '.join(missing[:8])}"
            more = ", …" if len(missing) > 8 else ""
            raise RunError(
                f"{who}{more} did not come within {seconds:.0f} s; start all ranks with the same "
                "MASTER_ADDR and MASTER_PORT, or raise --timeout"
            )
        time.sleep(_POLL_SECONDS)


def leave_last(world: World) -> None:
    """Wait under torchrun until it kills this rank, because another rank tells the error."""
    if world.under_torchrun:
        time.sleep(SILENT_SECONDS)
