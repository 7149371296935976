"""Plans on two levels over all pairs of downsets, by the matrices in two_levels_matrices.py."""

from collections.abc import Sequence

import numpy as np

from autopart.peers.pipedream.charge_arrays import (
    level_costs,
    node_matrices,
    outer_matrices,
    within_node,
)
from autopart.peers.pipedream.charges import replica_counts
from autopart.peers.pipedream.downset_costs import DownsetCosts
from autopart.peers.pipedream.downset_sums import DownsetSums
from autopart.peers.pipedream.downsets import Downsets, downsets_between, nesting
from autopart.peers.pipedream.incumbent import Best, StageEnd, Task
from autopart.peers.pipedream.pair_seconds import PairSeconds
from autopart.peers.pipedream.two_levels_matrices import node_pipelines
from autopart.solvers.fewest_ranks import (
    TOLERANCE,
    BestStages,
    DownsetStage,
    Flags,
    Floats,
    Ints,
    bottleneck,
    fewest_ranks,
    tighten,
)

MOST_NODE_DOWNSETS = 600
"""Number of downsets up to which all pairs get a pipeline within a node."""

FIRST_CAP = 1.5
"""First search for a plan on two levels: up to this multiple of its bound."""


def on_nodes(
    task: Task,
    best: Best,
    downsets: Downsets,
    pieces: Sequence[Sequence[int]] | None = None,
    *,
    complete: bool = False,
) -> Best:
    """The better plan: `best`, or the best one on two levels over these downsets.

    Its bound is kept, unless the downsets are `complete`: all downsets, and few enough.
    """
    sums = task.sums(downsets, pieces)
    chosen = _thinned(sums)
    sums = DownsetSums(*(array[chosen] for array in sums))
    nested = nesting(downsets)[np.ix_(chosen, chosen)]
    masks = [downsets.masks[at] for at in chosen.tolist()]
    pipelines, found = _over_pairs(task, best, sums, nested)
    bound = found.lower_bound if complete else best.bound
    if not found.stages:
        return best._replace(bound=bound)
    level = level_costs(sums, task.network, all_sends=task.all_sends)
    inner = tuple(
        _pipeline_on_node(
            task, level, masks, nested, stage, float(pipelines[stage.start, stage.end])
        )
        for stage in found.stages
    )
    counts = replica_counts(task.network, 1)
    cuts = tuple(StageEnd(masks[stage.end], counts[stage.choice]) for stage in found.stages)
    return Best(found.bottleneck, bound, cuts, inner)


def _thinned(sums: DownsetSums) -> Ints:
    """Places of at most MOST_NODE_DOWNSETS downsets: among those with similar compute, the smallest
    cut."""
    size = len(sums.compute)
    if size <= MOST_NODE_DOWNSETS:
        return np.arange(size)
    shares = sums.compute / sums.compute[-1] * (MOST_NODE_DOWNSETS - 2)
    bucket = np.minimum(shares.astype(np.int64), MOST_NODE_DOWNSETS - 3)
    order = np.lexsort((sums.cut, bucket))
    order = order[(order > 0) & (order < size - 1)]
    _, firsts = np.unique(bucket[order], return_index=True)
    return np.sort(np.concatenate([[0], order[firsts], [size - 1]]))


def _over_pairs(
    task: Task, best: Best, sums: DownsetSums, nested: Flags
) -> tuple[Floats, BestStages[DownsetStage]]:
    """The pipelines on one node, and the best outer stages made from them.

    No stages are returned where `best` is as good. `nested` holds flags at [end, start].
    """
    network, all_sends = task.network, task.all_sends
    matrices = node_matrices(sums, nested.T, network, all_sends=all_sends)
    counts = replica_counts(network, 1)
    limit = min(best.value, FIRST_CAP * best.bound)
    # The cap doubles until the matrices below it hold a plan.
    while True:
        pipelines = node_pipelines(matrices, network.machines[0], limit * counts[-1])
        outer = outer_matrices(pipelines, sums, network, all_sends=all_sends)
        found = tighten(
            lambda limit, outer=outer: fewest_ranks(outer, limit, network.machines[1]),
            lambda stages, outer=outer: bottleneck(outer.seconds_of, stages),
            BestStages(best.value, best.bound, ()) if limit == best.value else None,
            best.bound,
            limit,
            task.deadline,
        )
        if found is not None:
            return pipelines, found
        limit = min(best.value, 2 * limit)


def _pipeline_on_node(
    task: Task,
    level: DownsetCosts,
    masks: Sequence[int],
    nested: Flags,
    stage: DownsetStage,
    limit: float,
) -> tuple[StageEnd, ...]:
    """The inner stages for an outer stage, whose bottleneck is known to be `limit`."""
    downsets = downsets_between(nested, stage.start, stage.end)
    costs = within_node(level, downsets)
    seconds = PairSeconds(costs, nested[np.ix_(downsets, downsets)])
    found = fewest_ranks(seconds, limit * (1 + TOLERANCE / 10), task.network.machines[0])
    assert found is not None, "the pipeline was found before"
    return tuple(StageEnd(masks[downsets[s.end]], costs.machines[s.choice]) for s in found)
