"""Processes on a CPU keep the memory that they free."""

import subprocess
import sys

import pytest

_SCRIPT = """
import resource, sys
import torch
from autopart.runtime.host_allocator import keep_freed_memory

if sys.argv[1] == "keeps":
    keep_freed_memory(torch.device("cpu"))
for _ in range(16):  # Until the heap has grown to its final size.
    torch.ones(1 << 23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(1 << 23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept_so_its_pages_are_not_touched_for_the_first_time_again() -> None:
    plain, keeps = _first_touches("plain"), _first_touches("keeps")
    assert plain > 10 * max(keeps, 1)


def _first_touches(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", _SCRIPT, mode], capture_output=True, timeout=600)
    return int(done.stdout)
