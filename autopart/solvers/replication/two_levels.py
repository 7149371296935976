"""Stages of a network with two levels: machines within nodes, and nodes.

Symbols   i < k < j      states: solvers/replication/dual.py;  n  machines of a node
          r              the inner choices: replicas within a node
          first_r(i, j)  the load of a stage that is the first one of its node, without transfers
          load_r(k, j)   the load of one that is not, with what it receives and sends

A stage of the outer level is a pipeline on one node, or the same one on several. Its bottleneck on
machines of one node, W(i, j), is found for all pairs of states at once, from the back of the node:

    Q_m(k, j) = min( load_m(k, j),  min over r, l of max(load_r(k, l), Q_{m-r}(l, j)) )
    W(i, j)   = min( first_r(i, j),  min over r, m, l of max(first_r(i, l), Q_m(l, j)) ),   r + m <= n

with m the machines in use behind, so that memory can be looked at exactly. The outer level is then an
ordinary problem over states whose loads are matrices made of W. Each minimum over l is a product of
matrices with (max, min) for (+, ·). No outer stage of a plan within T seconds has W above T times
its replicas: entries above such a cap are left out, and the cap is raised until it does not matter.
O(N³ n²) time, O(N² n) memory.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from autopart.solvers.replication.dual import Flags, Floats

Fits = Callable[[int, int], Flags]
"""Whether each pair of states, for a choice and machines behind, fits into memory."""


class NodeLoads(NamedTuple):
    """Stages within a node, for each inner choice a matrix at [start, end], infinite where there is
    no stage."""

    machines: Sequence[int]
    first: Sequence[Floats]
    first_send: Sequence[Floats]
    """By state: what the first stage's sends to the next one of its node take at least."""
    others: Sequence[Floats]
    fits: Fits | None = None


def node_pipelines(loads: NodeLoads, machines: int, cap: float) -> Floats:
    """W, infinite above `cap`: the smallest bottleneck of each pair of states on one node."""
    firsts = [_capped(matrix, cap) for matrix in loads.first]
    others = [_capped(matrix, cap) for matrix in loads.others]
    behind: list[Floats] = []
    """Q_m, m = 1 …"""
    for total in range(1, machines):
        best = np.full_like(firsts[0], np.inf)
        for choice, taken in enumerate(loads.machines):
            if taken == total:
                np.minimum(best, others[choice], out=best)
            elif taken < total:
                stage = _fitting(others[choice], loads.fits, choice, total - taken)
                _multiply(stage, behind[total - taken - 1], best)
        behind.append(best)
    found = np.full_like(firsts[0], np.inf)
    for choice, taken in enumerate(loads.machines):
        np.minimum(found, firsts[choice], out=found)
        sending = _capped(np.maximum(firsts[choice], loads.first_send[choice]), cap)
        if taken >= machines:
            continue
        if loads.fits is None:
            _multiply(sending, np.minimum.reduce(behind[: machines - taken]), found)
            continue
        for later in range(1, machines - taken + 1):
            stage = _fitting(sending, loads.fits, choice, later)
            _multiply(stage, behind[later - 1], found)
    return found


def _capped(matrix: Floats, cap: float) -> Floats:
    return np.where(matrix <= cap, matrix, np.inf)


def _fitting(matrix: Floats, fits: Fits | None, choice: int, later: int) -> Floats:
    return matrix if fits is None else np.where(fits(choice, later), matrix, np.inf)


def _multiply(left: Floats, right: Floats, into: Floats) -> None:
    """into[i, j] = min(into[i, j], min over l of max(left[i, l], right[l, j])), i < l < j."""
    some_left, some_right = np.isfinite(left), np.isfinite(right)
    begins = some_left.argmax(axis=0).tolist()
    ends = (len(left) - some_right[:, ::-1].argmax(axis=1)).tolist()
    usable = np.logical_and(some_left.any(axis=0), some_right.any(axis=1)).tolist()
    for l in range(1, len(left) - 1):
        if usable[l]:
            rows, columns = slice(begins[l], l), slice(l + 1, ends[l])
            both = np.maximum(left[rows, l, None], right[l, columns])
            block = into[rows, columns]
            np.minimum(block, both, out=block)
