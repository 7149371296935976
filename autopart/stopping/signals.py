"""Signals that end a process. Temporary folders and child processes never outlive it.

SIGINT raises KeyboardInterrupt in Python. SIGTERM and SIGHUP end a process at once, and leave its
temporary folders behind. Inside `ending_signals` they raise `Stopped`, so that cleaning up runs.
Python handles signals in the main thread only. In other threads these contexts do nothing.
"""

import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask a process to end. Windows has no SIGHUP."""


class Stopped(BaseException):
    """A signal asks this process to end. Programs never catch it, as with KeyboardInterrupt."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def ending_signals() -> Generator[None]:
    """Raise Stopped inside where an ending signal arrives; further ones are then ignored.

    A handler that a program has installed itself stays in place.
    """
    ours = [s for s in ENDING if _is_main() and signal.getsignal(s) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    # A second signal must not interrupt the cleaning up.
    for ending in ENDING:
        if signal.getsignal(ending) is _stop:
            signal.signal(ending, signal.SIG_IGN)
    raise Stopped(number)


@contextmanager
def held_signals() -> Generator[None]:
    """Hold back SIGINT and ending signals until the work inside is done, then let them act."""
    heard: list[int] = []
    before = {}
    if _is_main():
        for number in (signal.SIGINT, *ENDING):
            before[number] = signal.signal(number, lambda number, _: heard.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(heard):
            signal.raise_signal(number)


@contextmanager
def heard_interrupts() -> Generator[Callable[[], bool]]:
    """A callable that says whether Ctrl-C was pressed.

    It knows so even while the main thread is inside C code and raises no KeyboardInterrupt.
    """
    if not _is_main():
        yield lambda: False
        return
    reading, writing = socket.socketpair()
    for end in (reading, writing):
        end.setblocking(False)
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)

    def pressed() -> bool:
        # A closed socket raises OSError too: a thread may still ask after the end.
        with suppress(OSError):
            return signal.SIGINT in reading.recv(4096)
        return False

    try:
        yield pressed
    finally:
        signal.set_wakeup_fd(before)
        reading.close()
        writing.close()


@contextmanager
def temporary_folder(prefix: str) -> Generator[Path]:
    """A folder that is removed at the end, also where a signal ends the process."""
    try:
        with ending_signals():
            folder = None
            try:
                # No signal arrives between the folder's creation and its entry here.
                with held_signals():
                    folder = Path(tempfile.mkdtemp(prefix=prefix))
                yield folder
            finally:
                with held_signals():
                    if folder is not None:
                        shutil.rmtree(folder, ignore_errors=True)
    except Stopped as stopped:
        # Where no outer context handles it, the process ends as the signal asked.
        if signal.getsignal(stopped.number) is signal.SIG_DFL:
            os.kill(os.getpid(), stopped.number)
        raise


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()
