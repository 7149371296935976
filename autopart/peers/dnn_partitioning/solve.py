"""Splits for a dnn-partitioning instance: contiguous ones to optimality, others by search, with
bounds.

Contiguous: contiguous_split.py. Not contiguous: the contiguous optimum starts a search without
order (non_contiguous_split.py).
"""

import time

from autopart.errors import AutopartError, InfeasibleError
from autopart.peers.dnn_partitioning.answer import SplitAnswer
from autopart.peers.dnn_partitioning.charges import DnnInstance
from autopart.peers.dnn_partitioning.contiguous_split import ContiguousSplit
from autopart.peers.dnn_partitioning.non_contiguous_split import any_that_fits, non_contiguous_split
from autopart.text import counted

CONTIGUOUS_SHARE = 0.5
"""Share of the time for the contiguous start, where the split need not be contiguous."""


def solve(
    instance: DnnInstance, *, contiguous: bool = True, time_limit: float = 60.0
) -> SplitAnswer:
    """The split with the smallest largest charge, or the best one within `time_limit` seconds.

    Raises InfeasibleError where no split fits, and AutopartError where none was found in time.
    """
    began = time.perf_counter()
    _check_devices(instance)
    if contiguous:
        return ContiguousSplit(instance, began + time_limit).solve()
    try:
        start = ContiguousSplit(instance, began + CONTIGUOUS_SHARE * time_limit).solve()
    except AutopartError:
        start = any_that_fits(instance)
    return non_contiguous_split(instance, start, began + time_limit)


def _check_devices(instance: DnnInstance) -> None:
    """Raise InfeasibleError where some node has no device that can run it."""
    if not instance.num_accelerators and not instance.num_cpus:
        raise InfeasibleError("there are neither accelerators nor CPUs; allow at least one")
    unable = [node.id for node in instance.nodes if not node.on_accelerator]
    if unable and not instance.num_cpus:
        raise InfeasibleError(
            f"node {unable[0]} cannot run on an accelerator ({counted(len(unable), 'node')} cannot), "
            "and there are no CPUs; allow one"
        )
