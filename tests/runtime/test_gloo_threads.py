"""How gloo's own threads share cores."""

import os
import sys
from pathlib import Path

import pytest
from torch import distributed

from autopart.runtime.execution.gloo_threads import let_compute_go_first
from tests.runtime.rank_pool import RankPool


def policies(rank: int) -> tuple[list[int], int]:
    """Of the threads that carry messages, and of this one."""
    distributed.new_group([0, 1])
    let_compute_go_first()
    tasks = Path("/proc/self/task").iterdir()
    gloo = [t.name for t in tasks if (t / "comm").read_text().strip() == "gloo_tcp_loop"]
    return [os.sched_getscheduler(int(thread)) for thread in gloo], os.sched_getscheduler(0)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="Linux names threads and their classes"
)
def test_threads_that_carry_messages_do_not_interrupt_the_one_that_computes(two_ranks: RankPool):
    for gloo, own in two_ranks.call(policies):
        assert gloo and set(gloo) == {os.SCHED_BATCH} and own == os.SCHED_OTHER
