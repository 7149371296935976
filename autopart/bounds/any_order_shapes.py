"""Lower bounds over every order of actions for numbers of ranks and replicas.

P groups of r ranks run a pipeline: the replicas of a stage are a group, and a group may run several
stages. Everything else is open: any number of stages per group, any placement, any warm-up, whole
or split backwards. Layers may be ordered in any way that the graph allows. A rank runs
n = microbatches / r microbatches on each of its stages.

    d_l, t_l   the depth and the work of layer l: F before l and (f + i + w)_l, or
               F and I before l and (f + i)_l
    S          a set of layers; d(q) is its q-th depth in ascending order, from q = 0
    h(q)       a microbatch's seconds for q sends and q actions, or twice as many: there and back

    step >= (n sum of t + sum of d(q) + h(q) for q < g) / g + 2 n o    for the best g <= P      (13)
    step >= F before l + n (f + i + w)_l + e_l                         for each layer l         (14)
    step >= F before l + n (f + i)_l + I before l                      for each layer l         (15)
    step >= F + I + (n - 1) max(f, i)_l                                for each layer l         (16)
    sum over q < P of floor((step - d(q)) / (n u)) >= the layers in S  where t_l >= u on S      (17)

F, I and W are sums over all layers at the fastest GPU's speed, or over all layers before l. e_l are
syncs and updates. A sync counts its bytes over the best link that its ranks may have. With S as all
layers, (13) has g = P, and all syncs and updates.

(13), (17): take the groups with layers in S, each by its least deep layer there. These layers
differ, so their depths in ascending order are at least d(q). Each rank needs n t for each layer of
a group in S, between the first microbatch's path to it and the last one's path back. Of g groups, q
lie ahead of one of them, so its path has q more sends and actions. The mean over g groups is no
larger than the largest. On a chain the deeper group is the later one, so (17) adds h(q) to d(q).
(16): the first of n backwards of l, or the last of its forwards, lies on one microbatch's path.

The period has the same bounds but for F before l in (14), and for d(q) and h(q) of F alone in (13) and
(17): docs/objectives.md.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from autopart.bounds.microbatch_path import Mask
from autopart.cost.collectives import Fastest
from autopart.cost.links import link_across, send_time
from autopart.cost.stage_totals import layer_sizes
from autopart.cost.sync_rules import RULES
from autopart.cost.syncs import all_reduce_time, least_sync_price, synced_bytes, update_share
from autopart.downsets import nodes_ahead
from autopart.records.cluster import Cluster, Link, fastest_speed, num_gpus
from autopart.records.layer_graph import LayerGraph, edges, is_chain, positions
from autopart.records.problem import Problem
from autopart.schedules.actions import microbatches_per_replica

Shape = tuple[int, int]
"""Ranks per pipeline, and replicas."""

PerLayer = npt.NDArray[np.float64]
"""Seconds for each layer, shape (layers,)."""

SETS = 48
"""The most sets for one work u in (17), and the most values of u."""

BISECTIONS = 40
"""Times that the interval around a bound (17) is cut in two."""


def any_order_shape_bounds(
    problem: Problem, shapes: Sequence[Shape], *, split: bool
) -> dict[Shape, float]:
    """(13)-(16) in seconds for each shape, however many stages per rank.

    `split` says whether backwards may be split.
    """
    bounds = AnyOrderBounds(problem, split=split)
    most: dict[int, int] = {}
    for ranks, replicas in shapes:
        most[replicas] = max(ranks, most.get(replicas, 0))
    steps = {replicas: bounds.steps(ranks, replicas) for replicas, ranks in most.items()}
    return {(ranks, replicas): float(steps[replicas][ranks - 1]) for ranks, replicas in shapes}


def any_order_shape_bound(problem: Problem, shape: Shape, *, split: bool) -> float:
    """(13)-(17) in seconds for one shape."""
    ranks, replicas = shape
    bounds = AnyOrderBounds(problem, split=split)
    return bounds.packed(ranks, replicas, float(bounds.steps(ranks, replicas)[-1]))


class _View(NamedTuple):
    """Depths and work of the layers, less deep layers first, shape (layers,)."""

    depth: PerLayer
    work: PerLayer
    hops: PerLayer
    """h(q) in seconds."""


class AnyOrderBounds:
    """(13)-(17) for one problem."""

    def __init__(self, problem: Problem, *, split: bool) -> None:
        self.problem, self.overhead = problem, problem.cluster.action_overhead
        sizes, speed = layer_sizes(problem.graph), fastest_speed(problem.cluster)
        self.forward: PerLayer = sizes.forward_time / speed
        self.weights: PerLayer = sizes.weight_grad_time / speed * split
        self.gradient: PerLayer = sizes.backward_time / speed - self.weights
        self.update: PerLayer = sizes.update_time / speed
        before = ancestors(problem)
        self.ahead, self.back = before @ self.forward, before @ self.gradient
        there, back = _least_sends(problem.graph, problem.cluster)
        self.chain = is_chain(problem.graph)
        # A rank's period begins with its own first action, not behind a path to it.
        self.from_start = problem.objective != "period"
        self.views = (
            self._view(
                self.ahead * self.from_start,
                self.forward + self.gradient + self.weights,
                there * self.from_start,
                int(self.from_start),
            ),
            self._view(self.ahead + self.back, self.forward + self.gradient, there + back, 2),
        )

    def _view(self, depth: PerLayer, work: PerLayer, sends: PerLayer, actions: int) -> _View:
        order = np.argsort(depth, kind="stable")
        hops = np.concatenate([[0.0], np.cumsum(sends + actions * self.overhead)])
        return _View(depth[order], work[order], hops)

    def steps(self, most: int, replicas: int) -> PerLayer:
        """The largest among (13)-(16) in seconds for 1, 2, ..., `most` groups, at most one per layer."""
        n = microbatches_per_replica(self.problem.num_microbatches, replicas)
        ends, all_ends = self._ends(replicas)
        found = np.maximum(self._all_layers(most, n, all_ends), self._of_layers(n, ends))
        for view in self.views:
            found = np.maximum(found, self._mean(view, most, n))
        return found

    def packed(self, groups: int, replicas: int, least: float) -> float:
        """The largest of (17), at least `least` seconds."""
        n = microbatches_per_replica(self.problem.num_microbatches, replicas)
        for view in self.views:
            works = np.unique(view.work[view.work > 0])
            for work in works[:: -(-len(works) // SETS)] if len(works) else ():
                least = self._packed_layers(view, float(work), groups, n, least)
        return least

    def step_of_own_replicas(self, gpus: int) -> float:
        """The same where each stage has any number of replicas, on any of so many ranks."""
        m = self.problem.num_microbatches
        most, work = min(gpus, m), float(self.views[0].work.sum())
        alone = self._of_layers(microbatches_per_replica(m, most), 0.0 * self.update)
        return max(m * (work + 2 * self.overhead) / gpus, alone)

    def _all_layers(self, most: int, n: int, ends: float) -> PerLayer:
        """(13) for all layers and g = P, with syncs and updates."""
        depth, work, hops = self.views[0]
        groups = np.arange(1, most + 1)
        starts = np.cumsum(depth[:most] + hops[:most])
        return (n * work.sum() + ends + starts) / groups + 2 * n * self.overhead

    def _mean(self, view: _View, most: int, n: int) -> PerLayer:
        """(13) for the layers from each depth on."""
        depth, work, hops = view
        layers, groups = len(depth), np.arange(1, most + 1)
        sums = np.concatenate([[0.0], np.cumsum(depth), np.full(most, np.inf)])
        # Row x has the layers from the x-th depth on, column g - 1 the g least deep among them.
        starts = sums[np.arange(layers)[:, None] + groups] - sums[:layers, None]
        total = n * np.cumsum(work[::-1])[::-1, None]
        means = (total + starts + np.cumsum(hops[:most])) / groups
        return np.minimum.accumulate(means, axis=1).max(axis=0) + 2 * n * self.overhead

    def _of_layers(self, n: int, ends: PerLayer) -> float:
        """(14)-(16)."""
        o, once = self.overhead, float((self.forward + self.gradient).sum())
        both = n * (self.forward + self.gradient + 2 * o)
        start, own = self.ahead + both, self.ahead * self.from_start + both
        along = once + (n - 1) * (np.maximum(self.forward, self.gradient) + o) + 2 * o
        return float(
            np.maximum.reduce([own + n * self.weights + ends, start + self.back, along]).max()
        )

    def _packed_layers(self, view: _View, work: float, groups: int, n: int, least: float) -> float:
        """(17) for the layers that have as much work or more, from each depth on."""
        depth = view.depth[view.work >= work]
        count, each = len(depth), n * work
        # Row x has the layers from the x-th depth on; groups without a layer start never.
        first = np.arange(0, count, -(-count // SETS))
        padded = np.concatenate([depth, np.full(groups, np.inf)])
        starts = padded[first[:, None] + np.arange(groups)] + 2 * n * self.overhead
        if self.chain:
            starts = starts + view.hops[:groups]
        wanted = count - first
        # Step 1: a step in which each row's first group alone has all layers.
        high = starts[:, 0] + each * wanted
        low = np.full(len(first), least)
        open_ = high > low
        if not open_.any():
            return least
        # Step 2: bisect. Below `low` the groups cannot hold the layers.
        starts, wanted, low, high = starts[open_], wanted[open_], low[open_], high[open_]
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            # A quotient just below a whole number may be one by rounding.
            held = np.floor((middle[:, None] - starts) / each * (1 + 1e-12) + 1e-12)
            enough = np.maximum(held, 0.0).sum(axis=1) >= wanted
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        return max(least, float(low.max()))

    def _ends(self, replicas: int) -> tuple[PerLayer, float]:
        """Syncs and updates: for each layer alone, and for all together.

        A tied parameter is left out of each layer, and counts once for all.
        """
        graph, training = self.problem.graph, self.problem.training
        update = self.update / update_share(training, replicas)
        per_byte = _sync_seconds_per_byte(self.problem, replicas)
        own = update + per_byte * synced_bytes(layer_sizes(graph), training)
        if not graph.tied:
            return own, float(own.sum())
        tied = sum(synced_bytes(parameter, training) for parameter in graph.tied)
        for_tied = _tied_seconds_per_byte(self.problem, replicas, per_byte)
        return own, float(own.sum()) + for_tied * tied


def _sync_seconds_per_byte(problem: Problem, replicas: int) -> float:
    """Seconds that a sync takes for each byte, on the best link that its ranks may have.

    Where buckets go out during backwards, a larger stage may hide more, so nothing is said.
    """
    rule = RULES[problem.training.sync]
    if rule.sums_early or rule.gathers_early:
        return 0.0
    cluster, counts = problem.cluster, range(replicas, replicas + 1)
    price = least_sync_price(cluster, counts, problem.training)
    if isinstance(price, Fastest):
        return min(piece.per_byte for piece in price.pieces)
    across, inside = [
        all_reduce_time(msgspec.structs.replace(link, latency=0.0), 1.0, replicas)
        for link in (cluster.inter_node, cluster.intra_node)
    ]
    return across if replicas > cluster.gpus_per_node else min(across, inside)


def _tied_seconds_per_byte(problem: Problem, replicas: int, in_stage: float) -> float:
    """The same for a tied parameter: synced with its stage, or among the replicas of several stages.

    A ring over more ranks takes longer. On a network, more ranks may be faster.
    """
    if not RULES[problem.training.sync].ties_once:
        return in_stage
    counts = range(replicas, max(replicas, num_gpus(problem.cluster)) + 1)
    price = least_sync_price(problem.cluster, counts, problem.training)
    if not isinstance(price, Fastest):
        return in_stage
    return min(in_stage, *(piece.per_byte for piece in price.pieces))


def _least_sends(graph: LayerGraph, cluster: Cluster) -> tuple[PerLayer, PerLayer]:
    """Seconds for a send over each cut of a chain, cheapest cut first: activations, then gradients.

    The longest send among the values that cross the cut counts, on the better link. All are 0 where
    the graph is no chain.
    """
    place, inner = positions(graph), max(0, len(graph.layers) - 1)
    there, back = np.zeros(inner), np.zeros(inner)
    for value in graph.values if is_chain(graph) else ():
        if value.part_of is not None:
            continue  # Its bytes may travel with the larger value.
        first = place[value.producer]
        last = max((place[name] for name in value.consumers), default=first)
        seconds = _best_send(cluster, value.bytes)
        there[first:last] = np.maximum(there[first:last], seconds)
        if value.has_gradient:
            back[first:last] = np.maximum(back[first:last], seconds)
    return np.sort(there), np.sort(back)


def _best_send(cluster: Cluster, num_bytes: int) -> float:
    links: list[Link] = [cluster.intra_node] if cluster.gpus_per_node > 1 else []
    links += [link_across(cluster)] if cluster.num_nodes > 1 else []
    return min((send_time(link, float(num_bytes), 1) for link in links), default=0.0)


def ancestors(problem: Problem) -> Mask:
    """Boolean, shape (n, n): whether layer u lies before layer w, at [w, u]."""
    return nodes_ahead(len(problem.graph.layers), edges(problem.graph))
