"""Totals for all stages between two cuts, where the stages of a rank choose their policies together.

No stage has best policies of its own there (autopart/activations/rank_choices.py). Bounds take totals that no choice
beats. Proposals take those in an even share of the rank's memory.
"""

import numpy as np

from autopart.activations.best_totals import best_totals, least_totals, with_best_policies
from autopart.activations.chooser import StagePlace
from autopart.activations.policies import (
    chooses_by_rank,
    has_policies,
    leaves_choice,
    most_freed,
    optimizer_places,
)
from autopart.cost.cuts import Cuts
from autopart.cost.in_flight import microbatches_in_flight
from autopart.cost.memory_limits import Limits
from autopart.cost.stage_totals import Array, StageTotals
from autopart.records.cluster import host_share, slowest_speed, smallest_memory
from autopart.records.layouts import Layout
from autopart.records.problem import Problem, splits_backward


def likely_totals(problem: Problem, layout: Layout, cuts: Cuts, stage: int) -> StageTotals[Array]:
    """`with_best_policies`; in an even share of the rank's memory, where its stages choose together."""
    if not chooses_by_rank(problem, layout):
        return with_best_policies(problem, layout, cuts, stage)
    ranks, reserve = layout.stage_ranks[stage], problem.cluster.reserve_bytes
    on_rank = sum(ranks[0] in own for own in layout.stage_ranks)
    share = reserve + (smallest_memory(problem.cluster, ranks) - reserve) // on_rank
    host = host_share(problem.cluster)
    on_host = None if host is None else host // on_rank
    limits = Limits(microbatches_in_flight(layout, stage), share, on_host)
    place = StagePlace(len(ranks), limits, slowest_speed(problem.cluster, ranks))
    split = splits_backward(layout.schedule)
    return best_totals(cuts).of_shared_rank(problem, place, split=split)


def leanest_totals(problem: Problem, layout: Layout, cuts: Cuts, stage: int) -> StageTotals[Array]:
    """`least_totals`; `freest_totals` where the stages of a rank choose together."""
    if chooses_by_rank(problem, layout):
        return freest_totals(problem, layout, cuts)
    return least_totals(problem, layout, cuts, stage)


def freest_totals(problem: Problem, layout: Layout, cuts: Cuts) -> StageTotals[Array]:
    """`cuts.totals` with the least stash and state that any policies leave, and the workspace without policies.

    No policies need fewer bytes at any moment: they only enlarge the workspace, and an input that stays for a layer that
    runs again takes as many bytes from the workspace as it adds to the stash. Bytes on the host count as none.
    """
    if not has_policies(layout.schedule) or not leaves_choice(problem.demands):
        return cuts.totals
    freed = cuts.ahead @ np.array(most_freed(problem.graph, problem.demands))
    stash = cuts.totals.stash_bytes - (freed[None, :] - freed[:, None])
    inner = np.minimum(cuts.totals.inner_stash_bytes, stash)
    off_device = int(True in optimizer_places(problem.demands))
    return cuts.totals._replace(
        stash_bytes=stash,
        inner_stash_bytes=inner,
        optimizer_on_host=cuts.totals.optimizer_on_host + off_device,
    )
