"""Totals for all stages between two cuts, with the chosen point or the chosen place for each stage."""

import numpy as np
import numpy.typing as npt

from autopart.activations.changes import CHANGED_FIELDS, apply_changes
from autopart.activations.chooser import Beside
from autopart.activations.stage_frontiers import StageFrontiers
from autopart.cost.memory_limits import Limits
from autopart.cost.stage_totals import Array, StageTotals


def in_chosen_places(
    hosted: npt.NDArray[np.bool_], device: StageTotals[Array], host: StageTotals[Array]
) -> StageTotals[Array]:
    """For each stage its totals in the chosen place. The traffic over its cuts is the same in both."""
    fields = {
        name: np.where(hosted, there, here)
        for (name, here), there in zip(device._asdict().items(), host, strict=True)
        if name not in ("received", "sent")
    }
    return device._replace(**fields)


def with_chosen_points(
    totals: StageTotals[Array],
    asked: npt.NDArray[np.bool_],
    frontiers: StageFrontiers,
    beside: Beside,
    limits: Limits,
) -> StageTotals[Array]:
    """`totals` with the best point for each stage that is asked for; `beside` has matrices."""
    at = np.nonzero(asked)
    if not len(at[0]):
        return totals
    full = {name: np.broadcast_to(getattr(totals, name), asked.shape) for name in CHANGED_FIELDS}
    # Step 1: the totals for the asked stages, one after the other.
    own = totals._replace(**{name: matrix[at] for name, matrix in full.items()})
    # Step 2: each stage's point, and its changes.
    whole = beside._replace(bytes=tuple(np.broadcast_to(one, asked.shape) for one in beside.bytes))
    points = frontiers.best(at[0], at[1], whole.at(at), limits)
    changed = apply_changes(own, points)
    # Step 3: back into the matrices.
    return totals._replace(
        **{name: _with_entries(full[name], at, getattr(changed, name)) for name in CHANGED_FIELDS}
    )


def _with_entries(matrix: Array, at: tuple[Array, ...], entries: Array) -> Array:
    matrix = np.array(matrix)
    matrix[at] = entries
    return matrix
