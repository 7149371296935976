"""Seconds that activation policies add to the path around a stage.

Recomputed and offloaded layers lengthen forwards and backwards. On the stage itself the policies on
[i, j] count. On the stages ahead and behind the fewest added seconds count: shortest paths over the
cuts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.activations.best_totals import with_best_policies
from autopart.activations.policies import leaves_choice
from autopart.bounds.microbatch_path import Mask, Matrix
from autopart.cost.cuts import Cuts
from autopart.cost.on_ranks import on_ranks
from autopart.records.layouts import Layout
from autopart.records.problem import Problem
from autopart.stopping.time_limit import check_time


class AddedSeconds(NamedTuple):
    """Seconds that policies add for one microbatch, for every [i, j] in one stage's place."""

    ahead: Matrix
    """The fewest on all stages before cut i, shape (N, 1); infinite where none fit."""
    own: Matrix
    """Seconds on [i, j] itself."""
    behind: Matrix
    """The fewest on all stages behind cut j, shape (1, N)."""


class PolicySeconds(NamedTuple):
    """Seconds that policies add to forwards, to backwards, and to both together."""

    forward: AddedSeconds
    backward: AddedSeconds
    both: AddedSeconds


def policy_seconds(
    problem: Problem, layout: Layout, cuts: Cuts, fitting: Sequence[Mask]
) -> list[PolicySeconds]:
    """The seconds that policies add on each stage; `fitting` has the [i, j] that may be it."""
    k = len(layout.stage_ranks)
    if not leaves_choice(problem.demands):
        nothing = AddedSeconds(np.zeros((1, 1)), np.zeros((1, 1)), np.zeros((1, 1)))
        return [PolicySeconds(nothing, nothing, nothing)] * k
    forward: list[Matrix] = []
    backward: list[Matrix] = []
    for stage in range(k):
        check_time()
        totals = with_best_policies(problem, layout, cuts, stage)
        totals, plain = (on_ranks(own, problem, layout, stage) for own in (totals, cuts.totals))
        for more, own, was in (
            (forward, totals.forward_time, plain.forward_time),
            (backward, totals.backward_time, plain.backward_time),
        ):
            more.append(np.where(fitting[stage], own - was, np.inf))
    both = [f + b for f, b in zip(forward, backward, strict=True)]
    found = (_along_the_cuts(own) for own in (forward, backward, both))
    return [PolicySeconds(*own) for own in zip(*found, strict=True)]


def _along_the_cuts(own: Sequence[Matrix]) -> list[AddedSeconds]:
    """`AddedSeconds` for each stage, by two dynamic programs over the cuts.

    ahead(0, 0) = 0 and ahead(s + 1, j) = min over i: ahead(s, i) + own(s, [i, j]); behind likewise,
    from the last cut. O(N² k) time for N cuts.
    """
    k, size = len(own), len(own[0])
    ahead, behind = [np.full(size, np.inf)], [np.full(size, np.inf)]
    ahead[0][0] = behind[0][-1] = 0.0
    for stage in range(k - 1):
        # Step 1: reach each cut j with one stage more ahead of it.
        ahead.append((ahead[-1][:, None] + own[stage]).min(axis=0))
        # Step 2: leave each cut i with one stage more behind it.
        behind.append((own[k - 1 - stage] + behind[-1][None, :]).min(axis=1))
    behind.reverse()
    return [
        AddedSeconds(a[:, None], more, b[None, :])
        for a, more, b in zip(ahead, own, behind, strict=True)
    ]
