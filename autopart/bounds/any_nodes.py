"""What the bounds of a layout have in common on all nodes: kept, so that it is computed once.

Where GPUs are alike, a stage's bytes and work do not depend on the nodes of its ranks. Links and
the prices of syncs do. So the bounds of a stage depend on a few numbers beside the layout without
its ranks: its own links, the sends elsewhere, and the prices of its syncs. Many assignments of
ranks to nodes have the same numbers.
"""

import functools
from collections.abc import Callable, Hashable, Sequence

import msgspec
import numpy as np

from autopart.activations.best_totals import with_best_policies
from autopart.bounds.microbatch_path import Mask, Matrix
from autopart.bounds.policy_seconds import PolicySeconds, policy_seconds
from autopart.bounds.pseudo_clusters import without_nodes
from autopart.cost.cuts import Cuts, allowed
from autopart.cost.memory_limits import fits_on_ranks
from autopart.records.layouts import Layout, has_virtual_stages, side_by_side
from autopart.records.problem import Problem
from autopart.stopping.time_limit import check_time

KEPT_ENTRIES = 12_000_000
"""Matrix entries that are kept for other nodes: some hundred megabytes."""


class OnAnyNodes:
    """The parts of a layout's bounds that hold on any nodes, and matrices kept for other nodes."""

    def __init__(self, problem: Problem, layout: Layout, cuts: Cuts) -> None:
        self._problem, self._layout, self._cuts = problem, layout, cuts
        self._kept: dict[Hashable, Matrix] = {}
        self.entries = 0
        """Matrix entries that are kept."""

    @functools.cached_property
    def fitting(self) -> Sequence[Mask]:
        """For each stage the [i, j] that may be it and fit.

        Shorter where no path over such stages goes on.
        """
        problem, layout, cuts = self._problem, self._layout, self._cuts
        found: list[Mask] = []
        reached = np.arange(len(cuts.nested)) == 0
        for stage in range(len(layout.stage_ranks)):
            check_time()
            # Step 1: the stages that pins allow and memory holds in this place.
            totals = with_best_policies(problem, layout, cuts, stage)
            may = allowed(cuts, problem.graph, problem.demands, stage)
            fits = may & fits_on_ranks(totals, problem, layout, stage)
            # Step 2: the cuts at which a path may end after this stage.
            reached = fits[reached].any(axis=0)
            if not reached.any():
                break
            found.append(fits)
        return found

    @functools.cached_property
    def policies(self) -> list[PolicySeconds]:
        """The seconds that policies add on each stage."""
        return policy_seconds(self._problem, self._layout, self._cuts, self.fitting)

    def matrix(self, key: Hashable, make: Callable[[], Matrix]) -> Matrix:
        """The matrix that belongs to a key, read-only; `make` computes it the first time.

        The key has everything that the matrix depends on beside the layout without its ranks.
        """
        if key not in self._kept:
            made = make()
            made.flags.writeable = False
            if self.entries + made.size > KEPT_ENTRIES:
                self._kept.clear()
                self.entries = 0
            self._kept[key] = made
            self.entries += made.size
        return self._kept[key]


def on_any_nodes(problem: Problem, layout: Layout, cuts: Cuts) -> OnAnyNodes:
    """The common parts of a layout's bounds; those of the latest few layouts are at hand."""
    if problem.cluster.gpus or has_virtual_stages(layout):
        return OnAnyNodes(problem, layout, cuts)
    anywhere = msgspec.structs.replace(problem, cluster=without_nodes(problem.cluster))
    counts = tuple(map(len, layout.stage_ranks))
    network = problem.cluster.network
    slowdown = 0.0 if network is None else network.slowdown
    return of_counts(anywhere, slowdown, layout.schedule, counts, layout.num_microbatches, cuts)


@functools.lru_cache(maxsize=2)
def of_counts(
    problem: Problem,
    slowdown: float,
    schedule: str,
    counts: tuple[int, ...],
    num_microbatches: int,
    cuts: Cuts,
) -> OnAnyNodes:
    """`on_any_nodes` for stages with `counts` replicas on GPUs that are alike.

    `slowdown` is of compute beside a sync. Matrices that are kept depend on it.
    """
    layout = Layout(
        schedule=schedule, stage_ranks=side_by_side(counts), num_microbatches=num_microbatches
    )
    return OnAnyNodes(problem, layout, cuts)
