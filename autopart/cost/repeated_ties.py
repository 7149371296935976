"""What several stages on one rank have together, and the rank has once: tied parameters, and values between them.

Each stage counts a tied parameter in its own totals (autopart/cost/stage_totals.py). On a rank with several of
these stages the first one has the weights and the optimizer's state. The totals of the others leave them out where
the rank's bytes are added up, and only there: seconds do not change. The last one has the gradient: its backward comes
first, and gradients count from there on (autopart/cost/made_gradients.py).

A stage hands its results to a next stage on the same ranks as they are: no message, no copy. What it keeps of them anyway
is in the stash of both. The earlier one has each microbatch longer, so the later one's stash leaves these values out:

    stash - values received + those of them that the earlier stage frees once they are sent (its outputs)

That holds where all layers keep their stash. Else the values count twice.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from autopart.cost.cuts import Cuts
from autopart.cost.stage_totals import StageTotals
from autopart.cost.tied_syncs import shared_ties, without_ties
from autopart.records.layouts import Layout, has_virtual_stages
from autopart.records.problem import Problem, keeps_all_stash
from autopart.schedules.actions import StageRanks
from autopart.units import Q


def without_repeats(
    problem: Problem,
    stage_ranks: StageRanks,
    all_totals: Sequence[StageTotals[Any]],
    copies: npt.NDArray[np.bool_],
) -> list[StageTotals[Any]]:
    """Each stage's totals without what an earlier stage on all its ranks has, or a later one.

    `copies` says which stages have a copy of each tied parameter, shape (..., tied parameters, stages). The
    totals are arrays with an entry for each partition, or numbers where `copies` has two dimensions.
    """
    whole = [
        without_handed_over(all_totals[stage - 1], totals)
        if shares_values(problem, stage_ranks, stage)
        else totals
        for stage, totals in enumerate(all_totals)
    ]
    if not problem.graph.tied:
        return whole
    found: list[StageTotals[Any]] = []
    for stage, totals in enumerate(whole):
        again = _repeats(copies, stage, earlier_on_ranks(stage_ranks, stage))
        to_come = _repeats(copies, stage, later_on_ranks(stage_ranks, stage))
        found.append(_without(problem, totals, again, to_come))
    return found


def is_behind(stage_ranks: StageRanks, stage: int) -> bool:
    """Whether the stage ahead of a stage has the same ranks, so that no microbatch leaves them in between."""
    return stage > 0 and tuple(stage_ranks[stage - 1]) == tuple(stage_ranks[stage])


def shares_values(problem: Problem, stage_ranks: StageRanks, stage: int) -> bool:
    """Whether the stage ahead hands values over whose bytes count once. Where layers may run again, they count twice."""
    return is_behind(stage_ranks, stage) and keeps_all_stash(problem.demands)


def without_handed_over(before: StageTotals[Q], totals: StageTotals[Q]) -> StageTotals[Q]:
    """A stage's totals without values that the stage `before` it keeps on the same ranks, also as expressions."""
    stash: Any = totals.stash_bytes - totals.received.bytes
    return totals._replace(stash_bytes=stash + before.output_bytes)


def least_on_ranks(layout: Layout, totals: StageTotals[Any]) -> StageTotals[Any]:
    """The totals of every [i, j] for bounds, without values that a stage ahead of any may keep on the same ranks."""
    ranks = layout.stage_ranks
    if not any(is_behind(ranks, stage) for stage in range(len(ranks))):
        return totals
    least: Any = np.maximum(totals.stash_bytes - totals.received.bytes, 0)
    return totals._replace(stash_bytes=least)


def _repeats(copies: npt.NDArray[np.bool_], stage: int, others: Sequence[int]) -> list[Any]:
    """For each tied parameter, 1 where a stage and one of the others have a copy."""
    both = copies[..., list(others)].any(axis=-1) & copies[..., stage]
    return [both[..., number].astype(np.int64) for number in range(both.shape[-1])]


def earlier_on_ranks(stage_ranks: StageRanks, stage: int) -> list[int]:
    """The earlier stages on all ranks of a stage."""
    ranks = set(stage_ranks[stage])
    return [s for s in range(stage) if ranks <= set(stage_ranks[s])]


def later_on_ranks(stage_ranks: StageRanks, stage: int) -> list[int]:
    """The later stages on all ranks of a stage."""
    ranks = set(stage_ranks[stage])
    return [s for s in range(stage + 1, len(stage_ranks)) if ranks <= set(stage_ranks[s])]


def without_shared_state(
    problem: Problem, layout: Layout, cuts: Cuts, totals: StageTotals[Any]
) -> StageTotals[Any]:
    """The totals of every [i, j] for bounds that add up a rank's stages, shape (N, N).

    They leave out each tied parameter that stages outside have too: which stage of a rank has it is not known.
    """
    if not problem.graph.tied or not has_virtual_stages(layout):
        return totals
    shared = shared_ties(problem, cuts)
    return _without(problem, totals, shared, shared)


def _without(
    problem: Problem,
    totals: StageTotals[Q],
    left_out: Sequence[Any],
    without_gradients: Sequence[Any],
) -> StageTotals[Q]:
    less: StageTotals[Any] = without_state(problem, totals, left_out, without_gradients)
    widest: Any = np.minimum(less.widest_trainable, less.num_trainable)
    return less._replace(widest_trainable=widest)


def without_state(
    problem: Problem,
    totals: StageTotals[Q],
    left_out: Sequence[Any],
    without_gradients: Sequence[Any],
) -> StageTotals[Q]:
    """The totals without state and gradients of some tied parameters, also as expressions.

    The widest layer stays as it is. Gradients that are summed in another dtype are there all the time: they count by elements,
    and so with the state.
    """
    weights: Any = totals.weight_bytes
    unscattered: Any = totals.unscattered_grad_bytes
    gradients: Any = totals.grad_bytes
    for tied, out in zip(problem.graph.tied, left_out, strict=True):
        weights = weights - out * tied.param_bytes
    for tied, out in zip(problem.graph.tied, without_gradients, strict=True):
        gradients = gradients - out * tied.grad_bytes
        unscattered = unscattered - out * (tied.unscattered_grad_bytes or 0)
    return without_ties(problem, totals, left_out)._replace(
        weight_bytes=weights, grad_bytes=gradients, unscattered_grad_bytes=unscattered
    )
