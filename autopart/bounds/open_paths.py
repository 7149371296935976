"""The partitions that bounds leave open: all their stages have a lower bound below a value."""

from collections.abc import Iterator, Sequence

import numpy as np

from autopart.bounds.microbatch_path import Mask, Matrix
from autopart.stopping.time_limit import check_time

TOGETHER = 1024
"""Beginnings that go on at once."""


def paths_below(bounds: Sequence[Matrix], seconds: float) -> Iterator[tuple[int, ...]]:
    """Every path over the cuts whose stages all have a bound below `seconds`.

    Each path is listed once, and no beginning is followed that cannot reach the last cut. So the
    time is O(N² k) for k stages between N cuts, and O(N k) for each path.
    """
    allowed = [bound < seconds for bound in bounds]
    last = allowed[0].shape[0] - 1
    # Step 1: from the last cut on, ends[s][i] says whether stages s, s + 1, ... can go from cut i
    # to the last.
    ends: list[Mask] = [np.zeros(last + 1, dtype=bool) for _ in range(len(bounds) + 1)]
    ends[-1][last] = True
    for stage in reversed(range(len(bounds))):
        allowed[stage] &= ends[stage + 1][None, :]
        ends[stage] = np.logical_or.reduce(allowed[stage], axis=1)
    # Step 2: from the first cut on, follow many beginnings side by side. Each row is one of them.
    begun = [np.zeros((int(ends[0][0]), 1), dtype=np.int64)]
    while begun:
        check_time()
        paths = begun.pop()
        stage = paths.shape[1] - 1
        if stage == len(bounds):
            yield from map(tuple, paths.tolist())
        elif len(paths) > TOGETHER:
            # Depth first, so that memory stays small and the first paths come soon.
            begun += [paths[TOGETHER:], paths[:TOGETHER]]
        else:
            which, end = np.nonzero(allowed[stage][paths[:, -1]])
            begun.append(np.hstack([paths[which], end[:, None]]))
