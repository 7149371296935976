"""The best cut along one order, by bisection (solvers/chain_bisection.py)."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.records.layouts import Partition
from autopart.solvers import chain_bisection
from autopart.solvers.chain import Chain, prefix

ROUNDING = 1e-12
"""Relative error in a sum of times, within which a bottleneck meets its bound."""


class Balance(NamedTuple):
    """Stages, their largest sum, and its bound."""

    bottleneck: float
    """The largest sum over a stage."""
    lower_bound: float
    """No stages in any order are better; equal to `bottleneck` where that is proven optimal."""
    order: tuple[int, ...]
    """The order in which the layers were cut: no other cut of this order is better."""
    stages: Partition


def cut_order(
    weights: Sequence[float], order: Sequence[int], num_stages: int, bound: float
) -> Balance:
    """The best cut along one order into `num_stages` stages."""
    sums = prefix(np.array([float(weights[layer]) for layer in order]))
    chain = Chain(work=sums, sends=(np.zeros(len(sums)),))
    cut = chain_bisection.solve(chain, [0] * (num_stages - 1), [1] * num_stages)
    assert cut is not None, "there are enough layers, and memory does not count"
    stages = tuple(tuple(sorted(order[a:b])) for a, b in itertools.pairwise(cut.cuts))
    return Balance(largest_sum(weights, stages), bound, tuple(order), stages)


def largest_sum(weights: Sequence[float], stages: Partition) -> float:
    """The largest sum of `weights` over a stage."""
    return max(sum(weights[layer] for layer in stage) for stage in stages)
