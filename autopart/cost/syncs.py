"""Prices of gradient syncs: seconds by bytes and ranks.

A stage's replicas sum their gradients with a ring all-reduce, and each steps all parameters. With ZeRO-1, a ring
reduce-scatter leaves each replica the sum for its shard. The replica steps that shard, and a ring all-gather sends
the new weights to all (Rajbhandari et al., ZeRO, 2020, section 7). These are the same 2 (r - 1) ring steps, but the
second half carries weights instead of gradients.

On a cluster with a network record, autopart/cost/collectives.py prices the same collectives by the
nodes that the ranks lie on. autopart/cost/stage_syncs.py says which part is exposed.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from msgspec import UNSET

from autopart.cost.collectives import (
    Affine,
    AnyPlacement,
    CollectiveName,
    Fastest,
    fabric_of,
    least_price,
    price_of,
    shape_of,
)
from autopart.records.cluster import Cluster, Link, slowest_link
from autopart.records.measured_collectives import MeasuredCollectives
from autopart.records.training import WIDTHS, Training, weight_dtype
from autopart.units import Q, Quantity

Q_co = TypeVar("Q_co", bound=Quantity, covariant=True)


class Trained(Protocol[Q_co]):
    """Parameters in a layer or a stage, or one tied parameter."""

    @property
    def grad_bytes(self) -> Q_co: ...
    @property
    def num_trainable(self) -> Q_co: ...


class RingOnLink(NamedTuple):
    """The price of a ring all-reduce over one link, on a cluster without a network record."""

    link: Link
    num_ranks: int
    share: float = 1.0
    """Part of the ring's steps: one half for a reduce-scatter or an all-gather alone."""

    def seconds(self, num_bytes: Q) -> Q:
        """Seconds for so many bytes on each rank."""
        return self.share * all_reduce_time(self.link, num_bytes, self.num_ranks)


CallPrice = RingOnLink | Fastest
"""Seconds of a collective, or of ZeRO-1's two, by the bytes."""


class SumAndGather(NamedTuple):
    """The prices of ZeRO-1's sync where they differ in form: an all-reduce, then an all-gather."""

    sums: CallPrice
    gathers: CallPrice

    def seconds(self, num_bytes: Q) -> Q:
        """Seconds for so many bytes of gradients, and as many of weights."""
        return self.sums.seconds(num_bytes) + self.gathers.seconds(num_bytes)


SyncPrice = CallPrice | SumAndGather
"""The price of a stage's sync; `halves` gives its parts under ZeRO-1."""


def sums_whole(training: Training) -> bool:
    """Whether ZeRO-1's gradients are summed by all-reduces, though each rank needs its shard only.

    Buckets beside a backward do not follow the shards, neither the executor's nor DDP's.
    """
    return training.zero1 and training.sync in ("overlap", "ddp")


def sync_price(cluster: Cluster, ranks: Sequence[int], training: Training) -> SyncPrice:
    """The price of a stage's gradient sync among its ranks, for `synced_bytes`."""
    return _of_sync(training, lambda collective: call_price(cluster, ranks, collective))


def sync_price_on(link: Link, num_ranks: int, training: Training) -> SyncPrice:
    """The same over one link, on a cluster without a network record."""
    return _of_sync(training, lambda collective: _on_link(link, num_ranks, collective))


def _of_sync(training: Training, price: Callable[[CollectiveName], CallPrice]) -> SyncPrice:
    if sums_whole(training):
        return SumAndGather(price("all_reduce"), price("all_gather"))
    return price("sharded_sync" if training.zero1 else "all_reduce")


def calls_of(price: SyncPrice) -> tuple[CallPrice, ...]:
    """The prices of which the sync's price is the sum."""
    return tuple(price) if isinstance(price, SumAndGather) else (price,)


def halves(price: SyncPrice) -> SumAndGather:
    """The prices of ZeRO-1's two collectives: that of gradients, and that of weights."""
    if isinstance(price, SumAndGather):
        return price
    half = _halved(price)
    return SumAndGather(half, half)


def all_reduce_price(cluster: Cluster, ranks: Sequence[int]) -> CallPrice:
    """The price of one all-reduce, with ZeRO-1 too."""
    return call_price(cluster, ranks, "all_reduce")


def _on_link(link: Link, num_ranks: int, collective: CollectiveName) -> RingOnLink:
    once = ("all_gather", "reduce_scatter", "all_to_all")
    return RingOnLink(link, num_ranks, 0.5 if collective in once else 1.0)


def call_price(cluster: Cluster, ranks: Sequence[int], collective: CollectiveName) -> CallPrice:
    """The price of one collective among `ranks`."""
    fabric = fabric_of(cluster)
    if fabric is None:
        return _on_link(slowest_link(cluster, tuple(ranks)), len(ranks), collective)
    nodes = [rank // cluster.gpus_per_node for rank in ranks]
    if isinstance(fabric.network, AnyPlacement):
        counts = range(len(ranks), len(ranks) + 1)
        return least_price(fabric, collective, counts, min(2, len(set(nodes))))
    return price_of(fabric, collective, shape_of(nodes))


def group_call_price(
    cluster: Cluster, ranks: Sequence[int], collective: CollectiveName
) -> CallPrice:
    """The price of one collective inside a rank group: as measured, where a link has no network record.

    Syncs of stages keep the ring's form: bounds over assignments of ranks rest on it.
    """
    link = slowest_link(cluster, tuple(ranks))
    if cluster.network is not None or link.collectives is UNSET or collective == "sharded_sync":
        return call_price(cluster, ranks, collective)
    return measured_price(link.collectives, len(ranks), collective)


def measured_price(
    measured: MeasuredCollectives, num_ranks: int, collective: CollectiveName
) -> Fastest:
    """The price of a measured collective among so many ranks."""
    # A ring over n ranks has n - 1 steps, and sends (n - 1) / n of the bytes.
    own = getattr(measured, collective)
    steps = (num_ranks - 1) / (measured.ranks - 1)
    part = (1 - 1 / num_ranks) / (1 - 1 / measured.ranks)
    return Fastest((Affine(own.latency * steps, part / own.bandwidth),))


def least_sync_price(cluster: Cluster, counts: range, training: Training) -> SyncPrice:
    """A price that no stage sync among any of `counts` ranks beats, on any nodes."""
    return _of_sync(training, lambda collective: _least(cluster, counts, collective))


def least_all_reduce_price(cluster: Cluster, counts: range) -> CallPrice:
    """A price that no all-reduce among any of `counts` ranks beats, on any nodes."""
    return _least(cluster, counts, "all_reduce")


def _least(cluster: Cluster, counts: range, collective: CollectiveName) -> CallPrice:
    fabric = fabric_of(cluster)
    if fabric is None:
        # A ring over fewer ranks takes fewer steps with fewer bytes in all.
        return _on_link(_best_link(cluster, counts[0]), counts[0], collective)
    return least_price(fabric, collective, counts, 1)


def _best_link(cluster: Cluster, count: int) -> Link:
    """A link that no ring over `count` ranks can beat."""
    inside, across = cluster.intra_node, cluster.inter_node
    if cluster.num_nodes == 1:
        return inside
    if count > cluster.gpus_per_node:
        return across
    return Link(
        bandwidth=max(inside.bandwidth, across.bandwidth),
        latency=min(inside.latency, across.latency),
        all_reduce_factor=min(inside.all_reduce_factor, across.all_reduce_factor),
    )


def _halved(price: CallPrice) -> CallPrice:
    """The price of one half of ZeRO-1's sync: its reduce-scatter or its all-gather alone."""
    if isinstance(price, RingOnLink):
        return price._replace(share=0.5)
    return Fastest(tuple(Affine(p.start / 2, p.per_byte / 2) for p in price.pieces))


def all_reduce_time(link: Link, num_bytes: Q, num_ranks: int) -> Q:
    """Seconds for a ring all-reduce: 2 (r - 1) steps, each with 1/r of the bytes, times the link's measured factor.

    Source: Patarasuk and Yuan, J. Parallel Distrib. Comput. 2009.
    """
    steps = 2 * (num_ranks - 1)
    ring = steps * (link.latency + num_bytes / num_ranks / link.bandwidth)
    return ring * link.all_reduce_factor


def gradient_bytes(parameters: Trained[Q], training: Training) -> Q:
    """Gradient bytes in the precision that gradients are summed in."""
    if training.gradient_dtype == weight_dtype(training):
        return parameters.grad_bytes
    return parameters.num_trainable * WIDTHS[training.gradient_dtype]


def synced_bytes(totals: Trained[Q], training: Training) -> Q:
    """Bytes in an all-reduce that takes as long as the sync among a stage's replicas."""
    summed = gradient_bytes(totals, training)
    # ZeRO-1 sends gradients in one half of the ring steps, and weights in the other.
    return (summed + totals.grad_bytes) / 2 if training.zero1 else summed


def sync_seconds(price: SyncPrice, parameters: Trained[Q], training: Training) -> Q:
    """Seconds of a sync that takes one call, or ZeRO-1's two."""
    if isinstance(price, SumAndGather):
        summed = price.sums.seconds(gradient_bytes(parameters, training))
        return summed + price.gathers.seconds(parameters.grad_bytes)
    return price.seconds(synced_bytes(parameters, training))


def update_share(training: Training, replicas: int) -> int:
    """The number of replicas that share a stage's optimizer step."""
    return replicas if training.zero1 else 1
