"""Rings of keys and values, turn by turn, as docs/context-parallel.md says."""

import random
from typing import NamedTuple

import msgspec

from autopart.records.cluster import Cluster
from autopart.records.group_variants import Collective, GroupVariant, LayerCollectives
from autopart.records.layer_graph import Layer
from autopart.records.problem import Problem
from tests.support.witness.collectives import links_of


class Turned(NamedTuple):
    """Seconds of a ring's messages, above its attention and beneath it."""

    above: float
    beneath: float


def draw_rings(rng: random.Random, variants: tuple[GroupVariant, ...]) -> tuple[GroupVariant, ...]:
    """A ring beside each variant with a context degree, or beside none."""
    if rng.random() < 0.4:
        return ()
    return tuple(_with_ring(rng, one) for one in variants if one.group.context > 1)


def _with_ring(rng: random.Random, gather: GroupVariant) -> GroupVariant:
    """A variant of the same degrees whose collectives among context ranks are rings in part."""
    layers = {layer.name: layer for layer in gather.graph.layers}

    def turned(one: Collective, layer: Layer) -> Collective:
        if one.among != "context" or one.phase not in ("forward", "input_grad"):
            return one
        # Attention is a part of the layer.
        most = layer.forward_time if one.phase == "forward" else layer.input_grad_time
        return msgspec.structs.replace(
            one, kind="ring", beneath=None, compute_time=most * rng.choice([0.0, 0.1, 0.3])
        )

    return GroupVariant(
        group=msgspec.structs.replace(gather.group, exchange="ring"),
        graph=gather.graph,
        collectives=tuple(
            LayerCollectives(
                layer=own.layer,
                collectives=tuple(turned(one, layers[own.layer]) for one in own.collectives),
            )
            for own in gather.collectives
        ),
    )


def ring_seconds_of(problem: Problem, one: Collective, gpus: list[int]) -> Turned:
    """Follow the clock of a GPU through all turns, in seconds before compute is slowed down."""
    cluster, turns = problem.cluster, len(gpus)
    rate, latency = _slowest(cluster, gpus)
    per_message = (latency + one.bytes / turns / rate) / cluster.compute_slowdown
    assert isinstance(one.compute_time, float)
    attend, clock, on_links = one.compute_time / turns, 0.0, 0.0
    for turn in range(turns):
        messages = int(turn < turns - 1)
        # Gradients of a block are sent a turn after they were made.
        messages += int(turn > 0 and one.phase == "input_grad")
        sending = messages * per_message
        on_links += sending
        clock += max(attend, sending) if cluster.sends_overlap else attend + sending
    above = clock - turns * attend
    return Turned(above, on_links - above)


def beneath_attention(
    problem: Problem, collectives: tuple[Collective, ...], gpus: list[int]
) -> tuple[float, float, float]:
    """Seconds of rings beneath attention: in forward, in backward, and in a forward that runs again."""
    found = [0.0, 0.0, 0.0]
    for one in collectives:
        if one.kind == "ring":
            hidden = ring_seconds_of(problem, one, gpus).beneath
            found[one.phase != "forward"] += hidden
            found[2] += hidden if one.recomputed else 0.0
    return found[0], found[1], found[2]


def _slowest(cluster: Cluster, gpus: list[int]) -> tuple[float, float]:
    """Bandwidth and latency of the slowest link between neighbours in the ring."""
    links, room = links_of(cluster), cluster.gpus_per_node
    rails = 1 if cluster.network is None else cluster.network.rails
    used: list[tuple[float, float]] = []
    for place, gpu in enumerate(gpus):
        other = gpus[place - 1]
        name = "intra" if gpu // room == other // room else "inter"
        if name == "inter" and gpu % room * rails // room != other % room * rails // room:
            name = "off rail" if "off rail" in links else name
        used.append((links[name].bandwidth, -links[name].latency))
    rate, less = min(used)
    return rate, -less
