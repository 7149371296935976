"""The rows of the bound by weights and prices: seconds of ranks and paths, and bytes at places.

autopart/bounds/memory_prices.py has the symbols, and (1) to (5).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.bounds.microbatch_path import Mask
from autopart.bounds.order_paths import OrderPaths
from autopart.cost.cuts import Cuts
from autopart.cost.in_flight import ranks_in_flight
from autopart.cost.stage_totals import Array
from autopart.records.layouts import Layout, own_microbatches
from autopart.records.problem import Problem
from autopart.schedules.encoding import I, W
from autopart.schedules.in_flight import MADE, STASH, WAITING

Numbers = npt.NDArray[np.float64]


class FullestPlaces(NamedTuple):
    """The places of all ranks."""

    stash: Numbers
    """n, shape (places, stages)."""
    waiting: Numbers
    """Microbatches that wait for W, shape (places, stages)."""
    made: Numbers
    """1 where the gradients of a stage exist, shape (places, stages)."""
    own: Numbers
    """1 where a stage is on the rank, shape (places, stages)."""
    room: Numbers
    """Shape (places,)."""


class PriceRows(NamedTuple):
    """How often each stage's seconds count in each row, shape (rows, stages)."""

    forward: Numbers
    gradient: Numbers
    weights: Numbers
    update: Numbers
    copies: Numbers
    extra: Numbers
    """Seconds that policies add, beyond copies beside compute."""
    fixed: Numbers
    """Fixed seconds of all actions, shape (rows,)."""


def fullest_places(
    problem: Problem, layout: Layout, cuts: Cuts, stash_bytes: float
) -> FullestPlaces:
    """(3) for all ranks. `stash_bytes` are those of one microbatch in all layers and values."""
    stages, nested = len(layout.stage_ranks), cuts.nested
    totals, cluster = cuts.totals, problem.cluster
    whole = _least(totals.workspace_bytes, nested)
    works = [whole, whole, whole, whole, whole]
    works[I] = _least(totals.input_grad_workspace_bytes, nested)
    works[W] = _least(totals.weight_grad_workspace_bytes, nested)
    found: list[tuple[Array, ...]] = []
    for in_flight in ranks_in_flight(layout).values():
        own = list(in_flight.stages)
        counts = np.zeros((3, len(in_flight.op), stages))
        counts[:, :, own] = in_flight.counts[:, [STASH, WAITING, MADE]].swapaxes(0, 1)
        on = np.zeros_like(counts[0])
        on[:, own] = 1.0
        room = cluster.memory_bytes - cluster.reserve_bytes - np.array(works)[in_flight.op]
        # The place that is fullest where layers lie evenly on all stages: other places rarely bind before it.
        even = counts[0].sum(axis=1) * stash_bytes / stages - room
        at = int(np.argmax(even))
        found.append((*counts[:, at : at + 1], on[at : at + 1], room[at : at + 1].astype(float)))
    return FullestPlaces(*(np.concatenate(each) for each in zip(*found, strict=True)))


def rank_rows(problem: Problem, layout: Layout, *, copied: bool) -> PriceRows:
    """(1), then (2), for all ranks; then (4), where any layer may be copied beside compute."""
    first_stages = _first_stages(layout)
    stages, count = len(layout.stage_ranks), own_microbatches(layout, 0)
    fixed = problem.cluster.action_overhead
    first = np.array([[own[0]] for own in first_stages])
    ahead = (np.arange(stages)[None, :] < first).astype(float)
    here = np.zeros(ahead.shape)
    for rank, own in enumerate(first_stages):
        here[rank, own] = count
    none = np.zeros(ahead.shape)
    actions = 2 * here.sum(axis=1) + ahead.sum(axis=1)
    parts = [
        # forward, gradient, weights, update, copies and policies
        (here + ahead, here, here, (here > 0).astype(float), none, here),
        (here + ahead, here + ahead, none, none, none, here + ahead),
    ]
    counts = [actions, actions + ahead.sum(axis=1)]
    if copied:
        parts.append((ahead, none, none, none, here, none))
        counts.append(ahead.sum(axis=1))
    rows = [np.concatenate(own) for own in zip(*parts, strict=True)]
    return PriceRows(*rows, fixed=fixed * np.concatenate(counts))


def path_rows(problem: Problem, paths: OrderPaths) -> PriceRows:
    """(5) for some paths."""
    link = problem.cluster.host_link
    apart = link is not None and not link.overlaps
    extra = np.minimum(paths.forward, paths.gradient) if apart else paths.gradient
    none = np.zeros(paths.forward.shape)
    fixed = problem.cluster.action_overhead * paths.actions
    return PriceRows(paths.forward, paths.gradient, paths.weights, paths.ends, none, extra, fixed)


def _first_stages(layout: Layout) -> list[list[int]]:
    """The stages of each rank in the first replica, lowest first."""
    found: dict[int, list[int]] = {}
    for stage, ranks in enumerate(layout.stage_ranks):
        found.setdefault(ranks[0], []).append(stage)
    return list(found.values())


def _least(sizes: Array, nested: Mask) -> int:
    return int(np.broadcast_to(sizes, nested.shape)[nested].min(initial=0))
