"""How gloo's own threads share cores with the one that computes.

A thread of gloo that wakes because of a message runs at once, in place of the thread that computes; where that
one was just sending, and holds the lock of the connection, gloo's thread does nothing but try the lock until its
time on the core is over, some milliseconds later. On two ranks and two cores that was an eighth of a step.
As a batch thread it waits for the next tick, or until the one that computes waits itself.
"""

import contextlib
import os
import sys
from pathlib import Path

_NAME = "gloo_tcp_loop"
"""What gloo calls the threads that carry messages."""


def let_compute_go_first() -> None:
    """Keep gloo's threads that exist by now from interrupting others of this process; on Linux."""
    if not sys.platform.startswith("linux"):
        return
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # It may have ended meanwhile.
            if (thread / "comm").read_text().strip() == _NAME:
                os.sched_setscheduler(int(thread.name), os.SCHED_BATCH, os.sched_param(0))
