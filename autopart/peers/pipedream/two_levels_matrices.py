"""The best pipeline on one node between each pair of downsets, as a matrix.

Symbols   i < k < j      downsets: fewest_ranks.py;  n  machines per node
          r              an inner choice: replicas within a node
          first_r(i, j)  seconds for a node's first stage, without transfers
          other_r(k, j)  seconds for any other stage, with its transfers

A stage on the outer level is a pipeline on one node, or the same pipeline on several. W(i, j) is
its bottleneck on one node's machines. It is found for all pairs at once, from the back of the node:

    Q_m(k, j) = min( other_m(k, j),  min over r, l of max(other_r(k, l), Q_{m-r}(l, j)) )
    W(i, j)   = min( first_r(i, j),  min over r, m, l of max(first_r(i, l), Q_m(l, j)) ),   r + m <= n

with m the machines in use behind, so that memory is looked at exactly. The outer level is then an
ordinary problem over downsets, with matrices made from W. Each minimum over l is a matrix product
with (max, min) for (+, ·). No outer stage in a plan within T seconds has W above T times its
replicas. Entries above such a cap are left out; the cap is raised until it does not matter. O(N³
n²) time, O(N² n) memory.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from autopart.solvers.fewest_ranks import Flags, Floats

Fits = Callable[[int, int], Flags]
"""Whether each pair of downsets fits into memory, for a choice and machines behind."""


class NodeMatrices(NamedTuple):
    """Stages within a node: for each inner choice a matrix at [start, end], infinite without a
    stage."""

    machines: Sequence[int]
    """Machines that each choice takes."""
    first: Sequence[Floats]
    """Seconds for the node's first stage, without sends."""
    first_send: Sequence[Floats]
    """Seconds by downset that the first stage's sends within its node take."""
    others: Sequence[Floats]
    """Seconds for all other stages."""
    fits: Fits | None = None
    """Whether stages fit into memory; None without a memory limit."""


def node_pipelines(stages: NodeMatrices, machines: int, cap: float) -> Floats:
    """W, infinite above `cap`: the smallest bottleneck for each pair of downsets on one node."""
    firsts = [_capped(matrix, cap) for matrix in stages.first]
    others = [_capped(matrix, cap) for matrix in stages.others]
    behind: list[Floats] = []
    """Q_m for m = 1, 2, …"""
    # Step 1: Q_m, from one machine upwards.
    for total in range(1, machines):
        best = np.full_like(firsts[0], np.inf)
        for choice, taken in enumerate(stages.machines):
            if taken == total:
                np.minimum(best, others[choice], out=best)
            elif taken < total:
                stage = _fitting(others[choice], stages.fits, choice, total - taken)
                _multiply(stage, behind[total - taken - 1], best)
        behind.append(best)
    # Step 2: W, from a first stage and the pipelines behind it.
    found = np.full_like(firsts[0], np.inf)
    for choice, taken in enumerate(stages.machines):
        np.minimum(found, firsts[choice], out=found)
        sending = _capped(np.maximum(firsts[choice], stages.first_send[choice]), cap)
        if taken >= machines:
            continue
        # Without a memory limit all Q_m are one matrix: their minimum.
        if stages.fits is None:
            _multiply(sending, np.minimum.reduce(behind[: machines - taken]), found)
            continue
        for later in range(1, machines - taken + 1):
            stage = _fitting(sending, stages.fits, choice, later)
            _multiply(stage, behind[later - 1], found)
    return found


def _capped(matrix: Floats, cap: float) -> Floats:
    """The matrix, infinite above `cap`."""
    return np.where(matrix <= cap, matrix, np.inf)


def _fitting(matrix: Floats, fits: Fits | None, choice: int, later: int) -> Floats:
    """The matrix, infinite where the stage does not fit into memory."""
    return matrix if fits is None else np.where(fits(choice, later), matrix, np.inf)


def _multiply(left: Floats, right: Floats, into: Floats) -> None:
    """into[i, j] = min(into[i, j], min over l of max(left[i, l], right[l, j])), i < l < j."""
    some_left, some_right = np.isfinite(left), np.isfinite(right)
    # Only the rectangle of finite entries around each l is looked at.
    begins = some_left.argmax(axis=0).tolist()
    ends = (len(left) - some_right[:, ::-1].argmax(axis=1)).tolist()
    usable = np.logical_and(some_left.any(axis=0), some_right.any(axis=1)).tolist()
    for l in range(1, len(left) - 1):
        if usable[l]:
            rows, columns = slice(begins[l], l), slice(l + 1, ends[l])
            both = np.maximum(left[rows, l, None], right[l, columns])
            block = into[rows, columns]
            np.minimum(block, both, out=block)
