"""Rank groups as ranks: the layers with their collectives, and the cluster with fewer, larger ranks.

With groups of g GPUs, rank q stands for GPUs q g … q g + g - 1, a part of one node or whole nodes. All GPUs of a group do equal work, and
each sends to the GPU at its own place in another group. So one GPU per group, at one place, stands for all. What
follows is an ordinary problem over these GPUs, and every formula and bound holds for it as it stands:

    layers    F, I and W of one GPU, with the seconds of its collectives inside the group
    cluster   G / g ranks per node, or one per g / G nodes; each has one GPU's memory, links and share of the host
              and of the rails

Symbols   C    seconds of a layer's collectives of I beneath W;  W  its weight gradients
          e    their exposed part in a whole backward: max(0, C - W) with Megatron's collectives, else C

    whole backward    I + e + W          split backward    I + C, later W

Gathers of weights and scatters of gradients (autopart/cost/sharded_state.py) run beneath compute, in the order in which
layers need them: that of the next layer beneath this one. A layer like this one hides them. With x for their seconds

    F  max(F, x_F)      whole backward  max(I + W, x_I + x_W)      I  max(I, x_I)      W  max(W, x_W)

The messages of a ring that attention hides (autopart/cost/rings.py) are on the same links, and count to x_F and x_I.
and what recomputing the forward adds hides them too. Where sends keep ranks busy, messages are added instead.

Megatron starts these collectives before W. The executor waits for each before it goes on, and so hides none; nor
do frameworks on DTensor, whose products compute W together with I.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np

from autopart.cost.contention import contended
from autopart.cost.paired_exchanges import with_overlapped_pair
from autopart.cost.rails import rails_of
from autopart.cost.rings import RingTimes, ring_times
from autopart.cost.syncs import group_call_price
from autopart.cost.uneven_experts import ExpertsPart
from autopart.records.cluster import Cluster, host_share, slowest_speed
from autopart.records.group_variants import Collective, GroupVariant, LayerCollectives, Phase
from autopart.records.layer_graph import Layer, LayerGraph, Recompute
from autopart.records.network import Network
from autopart.records.problem import Problem
from autopart.records.rank_group import Group, group_size, places_among
from autopart.records.training import Training

HIDING = ("megatron",)
"""The values of `--sync` whose frameworks run collectives of I beside W."""


def problem_of_groups(
    problem: Problem,
    variant: GroupVariant | None,
    parts: Mapping[str, ExpertsPart] | None = None,
) -> Problem:
    """The problem whose ranks are a variant's rank groups; the problem itself without one.

    `parts` has the experts' parts of layers, where overlapped pairs hide all-to-alls (`parts_beneath`).
    """
    if variant is None:
        return problem
    return msgspec.structs.replace(
        problem,
        graph=layers_of_group(variant, problem.cluster, problem.training, parts),
        cluster=cluster_of_groups(problem.cluster, group_size(variant.group)),
    )


def cluster_of_groups(cluster: Cluster, size: int) -> Cluster:
    """The cluster whose ranks are groups of so many equal GPUs; they fill each node, or each is whole nodes."""
    if size == 1:
        return cluster
    share, nodes = host_share(cluster), max(1, size // cluster.gpus_per_node)
    groups = max(1, cluster.gpus_per_node // size)
    return msgspec.structs.replace(
        cluster,
        num_nodes=cluster.num_nodes // nodes,
        gpus_per_node=groups,
        host_memory_bytes=None if share is None else share * groups,
        network=_network_of_groups(cluster, size),
    )


def _network_of_groups(cluster: Cluster, size: int) -> Network | None:
    """The network of the GPUs at one place of each group: their own share of a node's rails.

    Two groups share a rail where all their GPUs do. Where no number of rails says this, each group has its own.
    A group of whole nodes has a GPU at each place of a node, so sends keep to their rail.
    """
    network = cluster.network
    if network is None:
        return None
    groups, size = max(1, cluster.gpus_per_node // size), min(size, cluster.gpus_per_node)
    near = rails_of(cluster, np.arange(cluster.gpus_per_node)).reshape(groups, size)
    _, numbers = np.unique(near, axis=0, return_inverse=True)
    rails = int(numbers.max()) + 1
    if (np.arange(groups) * rails // groups != numbers.reshape(-1)).any():
        rails = groups
    summed = groups >= network.switch_ranks
    return msgspec.structs.replace(
        network,
        rails=rails,
        rail_bandwidth=network.rails * network.rail_bandwidth / (size * rails),
        switch_bandwidth=network.switch_bandwidth if summed else None,
    )


def layers_of_group(
    variant: GroupVariant,
    cluster: Cluster,
    training: Training,
    parts: Mapping[str, ExpertsPart] | None = None,
) -> LayerGraph:
    """A variant's layers with the seconds of their collectives, on the first GPUs of a cluster."""
    # `on_ranks` divides layer times by this speed later. Collectives are not slowed down by compute.
    speed = slowest_speed(cluster, ())
    own = collective_times(variant.collectives, cluster, variant.group, scale=speed)
    layers = tuple(
        _with_collectives(
            beneath_compute(layer, own[layer.name], overlaps=cluster.sends_overlap),
            own[layer.name],
            could_hide=layer.weight_grad_time if training.sync in HIDING else 0.0,
        )
        if layer.name in own
        else layer
        for layer in contended(variant.graph, cluster).layers
    )
    if parts is not None and cluster.sends_overlap:
        layers = tuple(
            with_overlapped_pair(layer, parts.get(layer.name), _exchanges(own.get(layer.name)))
            for layer in layers
        )
    return msgspec.structs.replace(variant.graph, layers=layers)


class CollectiveTimes(NamedTuple):
    """Seconds of a layer's collectives inside its rank group, by their place in the step."""

    forward: float
    input_grad: float
    """Those of I that nothing hides."""
    beneath: float
    """Those of I beneath W: C above."""
    weight_grad: float
    recomputed: float
    """The part of the forward's that a recomputed layer runs again."""
    step: float
    """Those once per step."""
    gather_forward: float = 0.0
    """Those that gather weights beneath the forward."""
    gather_backward: float = 0.0
    """Those that gather weights beneath the backward."""
    scatter: float = 0.0
    """Those that scatter gradients beneath the backward."""
    step_gather: float = 0.0
    """The part of `step` that gathers weights."""
    step_scatter: float = 0.0
    """The part of `step` that scatters gradients."""
    hidden_forward: float = 0.0
    """Those of a ring that attention's forward hides; `forward` has the others."""
    hidden_backward: float = 0.0
    """Those of a ring that attention's backward hides; `input_grad` has the others."""
    hidden_again: float = 0.0
    """The part of `hidden_forward` that a recomputed layer sends again."""
    entries_forward: float = 0.0
    """The part of `forward` that exchanges entries of experts."""
    entries_backward: float = 0.0
    """The part of `input_grad` that exchanges entries of experts."""


def collective_times(
    collectives: Iterable[LayerCollectives], cluster: Cluster, group: Group, *, scale: float = 1.0
) -> dict[str, CollectiveTimes]:
    """For each layer with collectives their seconds times `scale`, on the first group's GPUs; all groups lie alike."""

    @functools.cache
    def seconds(one: Collective) -> float:
        if one.kind == "ring":
            return scale * _ring(one, cluster, group).exposed
        among = "tensor" if one.among is msgspec.UNSET else one.among
        price = group_call_price(cluster, places_among(group, among), one.kind)
        return scale * price.seconds(float(one.bytes))

    # Blocks repeat: layers with equal collectives share their seconds.
    @functools.cache
    def times(collectives: tuple[Collective, ...]) -> CollectiveTimes:
        def alike(*, sharded: bool = False, **fields: Any) -> Iterator[Collective]:
            return (
                one
                for one in collectives
                if all(getattr(one, name) == fields[name] for name in fields)
                and (one.among == "data" and one.phase != "step") is sharded
            )

        def total(*, sharded: bool = False, **fields: Any) -> float:
            return sum(map(seconds, alike(sharded=sharded, **fields)), 0.0)

        def hidden(phase: Phase, **fields: Any) -> float:
            rings = alike(kind="ring", phase=phase, **fields)
            return scale * sum((_ring(one, cluster, group).hidden for one in rings), 0.0)

        return CollectiveTimes(
            forward=total(phase="forward"),
            input_grad=total(phase="input_grad", beneath=None),
            beneath=total(beneath="weight_grad"),
            weight_grad=total(phase="weight_grad"),
            recomputed=total(recomputed=True),
            step=total(phase="step"),
            gather_forward=total(phase="forward", sharded=True),
            gather_backward=total(phase="input_grad", sharded=True),
            scatter=total(phase="weight_grad", sharded=True),
            step_gather=total(phase="step", among="data", kind="all_gather"),
            step_scatter=total(phase="step", among="data", kind="reduce_scatter"),
            hidden_forward=hidden("forward"),
            hidden_backward=hidden("input_grad"),
            hidden_again=hidden("forward", recomputed=True),
            entries_forward=total(phase="forward", among="expert", kind="all_to_all"),
            entries_backward=total(phase="input_grad", among="expert", kind="all_to_all"),
        )

    return {own.layer: times(own.collectives) for own in collectives if own.collectives}


def _ring(one: Collective, cluster: Cluster, group: Group) -> RingTimes:
    return ring_times(one, cluster, places_among(group, "context"))


def _exchanges(own: CollectiveTimes | None) -> ExpertsPart:
    """Seconds of a layer's all-to-alls among experts."""
    return ExpertsPart(own.entries_forward, own.entries_backward) if own else ExpertsPart(0.0, 0.0)


def _with_collectives(layer: Layer, own: CollectiveTimes, *, could_hide: float) -> Layer:
    """The layer with the seconds of its collectives; see the formulas above."""
    exposed = max(0.0, own.beneath - could_hide)

    def run_again(of: Recompute | None) -> Recompute | None:
        """Both kinds of recompute run collectives again: only results of products are kept."""
        return of and msgspec.structs.replace(of, extra_time=of.extra_time + own.recomputed)

    # A pair saves no more with collectives than without, unless the framework overlaps those of experts.
    added = own.forward + own.input_grad + exposed + own.weight_grad
    return msgspec.structs.replace(
        layer,
        pair_time=layer.pair_time and layer.pair_time + added,
        forward_time=layer.forward_time + own.forward,
        input_grad_time=layer.input_grad_time + own.input_grad + exposed,
        weight_grad_time=layer.weight_grad_time + own.weight_grad,
        # A split backward puts W off, which then hides nothing.
        split_time=layer.split_time + own.beneath - exposed,
        update_time=layer.update_time + own.step,
        unshared_update_time=own.step or layer.unshared_update_time,
        recompute=run_again(layer.recompute),
        selective=run_again(layer.selective),
    )


def beneath_compute(layer: Layer, own: CollectiveTimes, *, overlaps: bool) -> Layer:
    """The layer with the exposed part of gathers and scatters; see the formulas above.

    `overlaps` says whether messages run beside compute.
    """
    if not own.gather_forward + own.gather_backward + own.scatter:
        return layer
    # A ring's messages are on the same links.
    gather_forward = own.gather_forward + own.hidden_forward
    gather = own.gather_backward + own.hidden_backward
    both = gather + own.scatter

    def together(compute: float, messages: float) -> float:
        return max(compute, messages) if overlaps else compute + messages

    backward = layer.input_grad_time + layer.weight_grad_time
    in_split = layer.input_grad_time + layer.split_time
    forward, whole = together(layer.forward_time, gather_forward), together(backward, both)
    alone, weights = together(in_split, gather), together(layer.weight_grad_time, own.scatter)

    def run_again(of: Recompute | None) -> Recompute | None:
        """The forward that runs again hides more of them; the same seconds serve whole and split backwards."""
        if of is None:
            return None
        in_whole = together(backward + of.extra_time, both + own.hidden_again) - whole
        in_halves = together(in_split + of.extra_time, gather + own.hidden_again) - alone
        return msgspec.structs.replace(of, extra_time=max(in_whole, in_halves))

    added = forward - layer.forward_time + whole - backward
    return msgspec.structs.replace(
        layer,
        pair_time=layer.pair_time and layer.pair_time + added,
        forward_time=forward,
        input_grad_time=max(0.0, whole - weights),
        weight_grad_time=weights,
        split_time=max(0.0, alone + weights - whole),
        recompute=run_again(layer.recompute),
        selective=run_again(layer.selective),
    )
