"""A wire with latency between two network namespaces, for kernels whose `tc` has no netem.

Each end is a TAP device. This process reads the frames of one end, and writes them to the other end
so many seconds later. The bandwidth is not limited here.
"""

import contextlib
import fcntl
import os
import queue
import select
import struct
import subprocess
import threading
import time
from collections.abc import Generator, Sequence

TUN = "/dev/net/tun"
SET_INTERFACE, TAP, NO_PROTOCOL = 0x400454CA, 0x0002, 0x1000
"""From linux/if_tun.h: TUNSETIFF, IFF_TAP, IFF_NO_PI."""
LARGEST_FRAME = 1 << 16
MTU = 16000
"""Large frames, so that few of them pass through Python. They fit into a token bucket."""

Frames = queue.SimpleQueue[tuple[float, bytes] | None]
"""Frames with the time at which each is due; None at the end."""


@contextlib.contextmanager
def delayed_wire(namespaces: Sequence[str], name: str, latency: float) -> Generator[None]:
    """Make one device called `name` in each of two namespaces; frames take `latency` seconds.

    Raises CalledProcessError or OSError where the system makes no TAP devices.
    """
    with contextlib.ExitStack() as opened:
        ends: list[int] = []
        for place, namespace in enumerate(namespaces):
            own = f"ap{os.getpid()}{'ab'[place]}"
            ends.append(_end(own))
            opened.callback(os.close, ends[-1])
            for words in (
                ("ip", "link", "set", own, "netns", namespace),
                ("ip", "-n", namespace, "link", "set", own, "name", name, "mtu", str(MTU)),
            ):
                subprocess.run(words, check=True, capture_output=True)
        for source, target in (ends, reversed(ends)):
            opened.enter_context(_frames_between(source, target, latency))
        yield


@contextlib.contextmanager
def _frames_between(source: int, target: int, latency: float) -> Generator[None]:
    """Carry frames from `source` to `target`.

    Both threads have ended when this returns. So none of them uses a number that another file has by then.
    """
    frames: Frames = queue.SimpleQueue()
    stop, stopping = os.pipe()
    works = (
        threading.Thread(target=_read, args=(source, stop, frames, latency), daemon=True),
        threading.Thread(target=_write, args=(target, frames), daemon=True),
    )
    for work in works:
        work.start()
    try:
        yield
    finally:
        os.close(stopping)
        frames.put(None)
        for work in works:
            work.join()
        os.close(stop)


def _end(name: str) -> int:
    """A new TAP device. It lives as long as the returned file."""
    end = os.open(TUN, os.O_RDWR)
    try:
        fcntl.ioctl(end, SET_INTERFACE, struct.pack("16sH22x", name.encode(), TAP | NO_PROTOCOL))
    except OSError:
        os.close(end)
        raise
    return end


def _go_first() -> None:
    """Let this thread run before all programs: a real wire waits for no processor."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def _read(source: int, stop: int, frames: Frames, latency: float) -> None:
    """Read frames until `stop` has an end of file, or the device is gone."""
    _go_first()
    with contextlib.suppress(OSError):
        while stop not in select.select([source, stop], [], [])[0]:
            frame = os.read(source, LARGEST_FRAME)
            frames.put((time.monotonic() + latency, frame))


def _write(target: int, frames: Frames) -> None:
    """Write each frame when it is due, until the end comes from the queue."""
    _go_first()
    while (next_one := frames.get()) is not None:
        due, frame = next_one
        time.sleep(max(0.0, due - time.monotonic()))
        with contextlib.suppress(OSError):  # the device is not up yet
            os.write(target, frame)
