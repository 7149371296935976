"""Keeps gloo's threads from interrupting the thread that computes.

When a message arrives, gloo's thread wakes and preempts the computing thread. If that thread was
sending, it has the connection's lock. Gloo's thread then spins on the lock until its time slice
ends, some milliseconds later. With two ranks on two cores this took an eighth of a step. We put
gloo's threads into the scheduling class for batch jobs. They then wait for the next timer tick, or
until the computing thread waits itself.
"""

import contextlib
import os
import sys
from pathlib import Path

_NAME = "gloo_tcp_loop"
"""Gloo's name for the threads that transfer messages."""


def let_compute_go_first() -> None:
    """Give gloo's existing threads in this process the batch scheduling class. Linux only."""
    if not sys.platform.startswith("linux"):
        return
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # The thread may have ended meanwhile.
            if (thread / "comm").read_text().strip() == _NAME:
                os.sched_setscheduler(int(thread.name), os.SCHED_BATCH, os.sched_param(0))
