"""Syncs of tied parameters, which several stages have a copy of.

There are two ways (autopart/cost/sync_rules.py):

    once     the executor:  one sync over all ranks with a copy, of all replicas. The stages' own syncs
                            leave the parameter out. With ZeRO-1 all these ranks share its shards
    twice    frameworks:    each stage's own sync has the parameter too. Besides, the ranks that run one
                            replica of these stages all-reduce their copies: a group for each replica,
                            all at once

Where stages with copies have different numbers of replicas, no framework runs the plan. Then the second
sum is priced as one all-reduce over all these ranks.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.cost.cuts import Cuts, count_inside
from autopart.cost.stage_totals import StageTotals
from autopart.cost.sync_rules import RULES
from autopart.cost.syncs import (
    SyncPrice,
    Trained,
    all_reduce_price,
    gradient_bytes,
    least_all_reduce_price,
    least_sync_price,
    sync_price,
    sync_seconds,
)
from autopart.records.cluster import Cluster
from autopart.records.layer_graph import LayerGraph, positions
from autopart.records.layouts import Partition
from autopart.records.problem import Problem
from autopart.records.training import Training
from autopart.units import Q

Ranks = tuple[int, ...]


class TiedPrice(NamedTuple):
    """The price of a tied parameter's sync."""

    price: SyncPrice
    share: int = 1
    """The ranks that divide the bytes, where each has a shard of its stage's sum already."""

    def seconds(self, tied: Trained[int], training: Training) -> float:
        """Seconds for one parameter."""
        if RULES[training.sync].ties_once:
            return sync_seconds(self.price, tied, training)
        return self.price.seconds(gradient_bytes(tied, training) / self.share)


def tied_price(cluster: Cluster, holders: Sequence[Ranks], training: Training) -> TiedPrice:
    """The price among the ranks of each stage with a copy."""
    everyone = all_ranks(holders)
    if RULES[training.sync].ties_once:
        return TiedPrice(sync_price(cluster, everyone, training))
    if not _alike(holders):
        return TiedPrice(all_reduce_price(cluster, everyone))
    # All replicas sum at once, each on its own share of the rails. The one on most nodes is the slowest.
    groups = [all_ranks([own]) for own in zip(*holders, strict=True)]
    room = cluster.gpus_per_node
    widest = max(groups, key=lambda own: (len({rank // room for rank in own}), len(own)))
    return TiedPrice(all_reduce_price(cluster, widest), _share(training, len(groups)))


def least_tied_prices(
    cluster: Cluster, ranks: Ranks, others: Sequence[Ranks], copies: int, training: Training
) -> list[TiedPrice]:
    """Prices of which the least bounds the sync of a parameter with `copies` layers.

    It joins the stage on `ranks` with some of the `others`.
    """
    once, alike = RULES[training.sync].ties_once, _alike([ranks, *others])
    if copies == 2 or (cluster.network is None and (once or alike)):
        # A ring over more stages takes longer. Two copies are on two stages.
        return [tied_price(cluster, (ranks, other), training) for other in others]
    if not others:
        return []
    # On a network, more ranks may be faster. So any number of them is taken, on any nodes.
    everyone = len(ranks) + sum(map(len, others))
    if once:
        fewest = len(ranks) + min(map(len, others))
        return [TiedPrice(least_sync_price(cluster, range(fewest, everyone + 1), training))]
    most = copies if alike else everyone
    price = least_all_reduce_price(cluster, range(2, most + 1))
    return [TiedPrice(price, _share(training, len(ranks)))]


def all_ranks(holders: Iterable[Ranks]) -> Ranks:
    """All ranks of some stages, in order."""
    return tuple(sorted({rank for ranks in holders for rank in ranks}))


def without_ties(
    problem: Problem, totals: StageTotals[Q], left_out: Sequence[Any]
) -> StageTotals[Q]:
    """The totals for a stage's own sync: `left_out` is 1 for each tied parameter that another sync sums."""
    grad_bytes, trained = totals.grad_bytes, totals.num_trainable
    for tied, out in zip(problem.graph.tied, left_out, strict=True):
        grad_bytes = grad_bytes - out * tied.grad_bytes
        trained = trained - out * tied.num_trainable
    return totals._replace(grad_bytes=grad_bytes, num_trainable=trained)


def without_shared_ties(problem: Problem, cuts: Cuts, totals: StageTotals[Any]) -> StageTotals[Any]:
    """The totals of every [i, j] without the parameters that stages outside have too, shape (N, N).

    Only where one sync over all copies sums these.
    """
    if not RULES[problem.training.sync].ties_once or not problem.graph.tied:
        return totals
    return without_ties(problem, totals, shared_ties(problem, cuts))


def shared_ties(problem: Problem, cuts: Cuts) -> list[Any]:
    """For each tied parameter, whether [i, j] has some copies and other stages the rest, shape (N, N)."""
    place = positions(problem.graph)
    found: list[Any] = []
    for tied in problem.graph.tied:
        spots = sorted({place[name] for name in tied.layers})
        inside = count_inside(cuts.ahead, spots)
        found.append((inside > 0) & (inside < len(spots)))
    return found


def _alike(holders: Sequence[Ranks]) -> bool:
    """Whether all stages have equally many replicas."""
    return len({len(ranks) for ranks in holders}) == 1


def _share(training: Training, replicas: int) -> int:
    return replicas if training.zero1 and RULES[training.sync].ties_sharded else 1


def tied_copies(
    problem: Problem, cuts: Cuts, routes: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Boolean, shape (paths, tied parameters, stages): whether a stage has a copy."""
    place = {layer.name: at for at, layer in enumerate(problem.graph.layers)}
    rows = [
        np.diff(cuts.ahead[:, [place[name] for name in set(tied.layers)]].sum(axis=1)[routes]) > 0
        for tied in problem.graph.tied
    ]
    shape = (len(routes), 0, routes.shape[1] - 1)
    return np.stack(rows, axis=1) if rows else np.zeros(shape, dtype=bool)


def copies_of(graph: LayerGraph, partition: Partition) -> npt.NDArray[np.bool_]:
    """`tied_copies` of one partition, shape (tied parameters, stages)."""
    place = positions(graph)
    found = np.zeros((len(graph.tied), len(partition)), dtype=bool)
    for row, tied in zip(found, graph.tied, strict=True):
        members = {place[name] for name in tied.layers}
        row[:] = [not members.isdisjoint(layers) for layers in partition]
    return found


def stages_with_copies(copies: npt.NDArray[np.bool_]) -> list[tuple[int, ...]]:
    """For each tied parameter the stages with a copy, from `copies_of`."""
    return [tuple(np.flatnonzero(row).tolist()) for row in copies]
