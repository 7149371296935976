"""Processes on a CPU that keep what they free."""

import subprocess
import sys

import pytest

_SCRIPT = """
import resource, sys
import torch
from autopart.runtime.host_allocator import keep_freed_memory

if sys.argv[1] == "keeps":
    keep_freed_memory(torch.device("cpu"))
for _ in range(16):  # Until the heap has found places that fit.
    torch.ones(1 << 23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(1 << 23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_memory_that_was_freed_is_not_touched_for_the_first_time_again() -> None:
    plain, keeps = _first_touches("plain"), _first_touches("keeps")
    assert plain > 10 * max(keeps, 1)


def _first_touches(way: str) -> int:
    done = subprocess.run([sys.executable, "-c", _SCRIPT, way], capture_output=True, timeout=120)
    return int(done.stdout)
