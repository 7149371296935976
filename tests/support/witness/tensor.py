"""Tensor variants drawn at random, and the problem of one degree as docs/cost-model.md says."""

import math
import random
from collections.abc import Sequence
from typing import Literal

import msgspec

from autopart.records.cluster import Cluster
from autopart.records.group_variants import Collective, GroupVariant, LayerCollectives, Phase
from autopart.records.layer_graph import Layer, LayerGraph, Recompute
from autopart.records.network import Network
from autopart.records.problem import Problem
from autopart.records.rank_group import Group
from tests.support.witness.collectives import (
    all_reduce_seconds,
    exchange_seconds,
    measured_seconds,
    ring_seconds,
    ring_turn_seconds,
)
from tests.support.witness.rings import ring_seconds_of


def draw_variants(
    rng: random.Random, graph: LayerGraph, degrees: Sequence[int]
) -> tuple[GroupVariant, ...]:
    """A variant for each degree, with sequence parallelism, without it, or both."""
    return tuple(
        GroupVariant(
            group=Group(tensor=degree, sequence_parallel=split),
            graph=_shard(rng, graph, degree),
            collectives=tuple(
                _collectives(rng, layer.name) for layer in graph.layers if rng.random() < 0.8
            ),
        )
        for degree in degrees
        for split in rng.choice([(False,), (True,), (False, True)])
    )


def draw_others(
    rng: random.Random,
    graph: LayerGraph,
    tensor: int,
    kinds: Sequence[Literal["context", "expert"]],
    degree: int,
) -> GroupVariant:
    """A variant with a degree of one or both kinds beside a tensor degree, whose collectives join any kind of GPUs."""
    listed: list[LayerCollectives] = []
    for layer in graph.layers:
        own = _collectives(rng, layer.name)
        joined = tuple(
            msgspec.structs.replace(one, among=rng.choice(kinds))
            if tensor == 1 or rng.random() < 0.5
            else one
            for one in own.collectives
        )
        listed.append(LayerCollectives(layer=layer.name, collectives=joined))
    return GroupVariant(
        group=Group(tensor=tensor, **dict.fromkeys(kinds, degree)),
        graph=_shard(rng, graph, degree ** len(kinds) * tensor),
        collectives=tuple(listed),
    )


def _shard(rng: random.Random, graph: LayerGraph, degree: int) -> LayerGraph:
    """The graph of one rank: each layer has between one t-th and all of its seconds and bytes."""
    # One share for all parameters: a layer never has less than its tied parameters.
    parameters = rng.uniform(1 / degree, 1)
    layers = tuple(_shard_of_layer(rng, layer, degree, parameters) for layer in graph.layers)
    values = tuple(
        msgspec.structs.replace(value, bytes=-(-value.bytes // rng.choice([1, degree])))
        for value in graph.values
    )
    tied = tuple(
        msgspec.structs.replace(
            one,
            param_bytes=math.ceil(parameters * one.param_bytes),
            grad_bytes=math.ceil(parameters * one.grad_bytes),
            num_trainable=math.ceil(parameters * one.num_trainable),
        )
        for one in graph.tied
    )
    return msgspec.structs.replace(graph, layers=layers, values=values, tied=tied)


def _shard_of_layer(rng: random.Random, layer: Layer, degree: int, parameters: float) -> Layer:
    def less(seconds: float) -> float:
        return seconds * rng.uniform(1 / degree, 1)

    def again(recompute: Recompute | None, stash: int) -> Recompute | None:
        if recompute is None:
            return None
        kept = min(stash, -(-recompute.stash_bytes // degree))
        return Recompute(extra_time=less(recompute.extra_time), stash_bytes=kept)

    stash = math.ceil(less(layer.stash_bytes))
    return msgspec.structs.replace(
        layer,
        forward_time=less(layer.forward_time),
        input_grad_time=less(layer.input_grad_time),
        weight_grad_time=less(layer.weight_grad_time),
        update_time=less(layer.update_time),
        param_bytes=math.ceil(parameters * layer.param_bytes),
        grad_bytes=math.ceil(parameters * layer.grad_bytes),
        num_trainable=math.ceil(parameters * layer.num_trainable),
        stash_bytes=stash,
        workspace_bytes=math.ceil(less(layer.workspace_bytes)),
        recompute=again(layer.recompute, stash),
        selective=again(layer.selective, stash),
    )


def _collectives(rng: random.Random, layer: str) -> LayerCollectives:
    return LayerCollectives(
        layer=layer, collectives=tuple(_collective(rng) for _ in range(rng.randint(0, 4)))
    )


def _collective(rng: random.Random) -> Collective:
    phases: list[Phase] = ["forward", "input_grad", "input_grad", "weight_grad", "step"]
    phase = rng.choice(phases)
    return Collective(
        kind=rng.choice(["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]),
        bytes=rng.randrange(40),
        phase=phase,
        beneath="weight_grad" if phase == "input_grad" and rng.random() < 0.6 else None,
        recomputed=phase == "forward" and rng.random() < 0.5,
    )


def problem_of_degree(problem: Problem, variant: GroupVariant) -> Problem:
    """The problem over one GPU of each tensor group."""
    own = {one.layer: one.collectives for one in variant.collectives}
    layers = tuple(
        layer_with_collectives(
            problem,
            layer,
            own.get(layer.name, ()),
            variant.group,
            could_hide=layer.weight_grad_time,
        )
        for layer in variant.graph.layers
    )
    graph = msgspec.structs.replace(variant.graph, layers=layers)
    alone = cluster_of_group(problem.cluster, gpus_of(variant.group))
    return msgspec.structs.replace(problem, graph=graph, cluster=alone)


def gpus_of(group: Group | None) -> int:
    """GPUs of a group without sharded state."""
    return 1 if group is None else group.tensor * group.context * group.expert


def cluster_of_group(cluster: Cluster, size: int) -> Cluster:
    """The cluster over one GPU of each group of so many. Groups larger than a node are whole nodes."""
    if size > cluster.gpus_per_node:
        return _one_gpu_of_nodes(cluster, size // cluster.gpus_per_node)
    groups, host = cluster.gpus_per_node // size, cluster.host_memory_bytes
    return msgspec.structs.replace(
        cluster,
        gpus_per_node=groups,
        host_memory_bytes=None if host is None else host // cluster.gpus_per_node * groups,
        network=cluster.network and _network(cluster.network, cluster.gpus_per_node, size),
    )


def _one_gpu_of_nodes(cluster: Cluster, nodes: int) -> Cluster:
    """One GPU for so many nodes each, with its own share of its node's rails and of the host."""
    gpus, host, network = cluster.gpus_per_node, cluster.host_memory_bytes, cluster.network
    if network is not None:
        own = network.rails * network.rail_bandwidth / gpus
        network = msgspec.structs.replace(
            network, rails=1, rail_bandwidth=own, switch_bandwidth=None
        )
    return msgspec.structs.replace(
        cluster,
        num_nodes=cluster.num_nodes // nodes,
        gpus_per_node=1,
        host_memory_bytes=None if host is None else host // gpus,
        network=network,
    )


def _network(network: Network, gpus: int, degree: int) -> Network:
    """One GPU's share of the rails for each group. Groups share a rail only where all their GPUs do."""
    groups = gpus // degree
    near = [
        tuple(gpu * network.rails // gpus for gpu in range(first, first + degree))
        for first in range(0, gpus, degree)
    ]
    rails = len(set(near))
    while [near.index(one) for one in near] != [
        [q * rails // groups for q in range(groups)].index(own * rails // groups)
        for own in range(groups)
    ]:
        rails += 1
    return msgspec.structs.replace(
        network,
        rails=rails,
        rail_bandwidth=network.rails * network.rail_bandwidth / degree / rails,
        switch_bandwidth=network.switch_bandwidth if groups >= network.switch_ranks else None,
    )


def layer_with_collectives(
    problem: Problem,
    layer: Layer,
    collectives: Sequence[Collective],
    group: Group | None,
    *,
    could_hide: float,
    more_per_step: float = 0.0,
) -> Layer:
    """The layer with its collectives, which compute does not slow down. Only Megatron hides some.

    `could_hide` is the compute of its W, and `more_per_step` are seconds of other collectives once per step.
    """
    spent = {
        "forward": 0.0,
        "again": 0.0,
        "beneath": 0.0,
        "input_grad": 0.0,
        "weight_grad": 0.0,
        "step": more_per_step,
    }
    for one in collectives:
        assert group is not None
        joined = joined_gpus(group, str(one.among))
        if one.kind == "ring":
            took = ring_seconds_of(problem, one, joined).above
        else:
            took = collective_seconds(problem, one, joined)
        spent["beneath" if one.beneath else one.phase] += took
        spent["again"] += took if one.recomputed else 0.0
    hidden = min(spent["beneath"], could_hide) if problem.training.sync == "megatron" else 0.0
    longer = {
        kind: msgspec.structs.replace(own, extra_time=own.extra_time + spent["again"])
        for kind, own in (("recompute", layer.recompute), ("selective", layer.selective))
        if own is not None
    }
    return msgspec.structs.replace(
        layer,
        forward_time=layer.forward_time + spent["forward"],
        input_grad_time=layer.input_grad_time + spent["input_grad"] + spent["beneath"] - hidden,
        weight_grad_time=layer.weight_grad_time + spent["weight_grad"],
        split_time=layer.split_time + hidden,
        update_time=layer.update_time + spent["step"],
        unshared_update_time=spent["step"] or layer.unshared_update_time,
        **longer,
    )


def joined_gpus(group: Group, among: str) -> list[int]:
    """The GPUs of the first group that a collective joins: tensor ranks side by side, then context, then expert ranks."""
    if among == "context":
        return [group.tensor * place for place in range(group.context)]
    if among == "expert":
        return [group.tensor * group.context * place for place in range(group.expert)]
    return list(range(group.tensor))


def collective_seconds(problem: Problem, one: Collective, gpus: Sequence[int]) -> float:
    """Seconds among some GPUs, which compute does not slow down."""
    nodes = [gpu // problem.cluster.gpus_per_node for gpu in gpus]
    return _seconds(problem.cluster, one, nodes) / problem.cluster.compute_slowdown


def _seconds(cluster: Cluster, one: Collective, nodes: Sequence[int]) -> float:
    share = 1.0 if one.kind == "all_reduce" else 0.5
    if cluster.network is None:
        link = cluster.intra_node if len(set(nodes)) == 1 else cluster.inter_node
        if link.collectives:
            return measured_seconds(link.collectives, one.kind, one.bytes, len(nodes))
        return share * ring_seconds(link, one.bytes, len(nodes))
    if one.kind == "all_reduce":
        return all_reduce_seconds(cluster, nodes, one.bytes)
    if one.kind == "all_to_all":
        return exchange_seconds(cluster, nodes, one.bytes)
    return cluster.network.start + ring_turn_seconds(cluster, nodes, one.bytes)
