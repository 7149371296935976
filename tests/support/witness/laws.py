"""Changes to a problem whose effect on its answer is known before anybody solves it."""

import random
from collections.abc import Callable
from typing import Any

import msgspec

from autopart.records.cluster import Cluster, HostLink, Link
from autopart.records.layer_graph import Layer, LayerGraph
from autopart.records.network import Network
from autopart.records.problem import CLASSIC, SCHEDULES, Demands, Problem

Change = Callable[[Problem], Problem | None]
"""Gives another problem; None where the change does not apply."""


def _with(problem: Problem, **fields: Any) -> Problem:
    return msgspec.structs.replace(problem, **fields)


def _cluster(problem: Problem, **fields: Any) -> Problem:
    return _with(problem, cluster=msgspec.structs.replace(problem.cluster, **fields))


def _demands(problem: Problem, **fields: Any) -> Problem | None:
    changed = msgspec.structs.replace(problem.demands, **fields)
    return None if changed == problem.demands else _with(problem, demands=changed)


def without_host(problem: Problem) -> Problem:
    """The problem with nothing in host memory: a rule chooses the copies, and it is not the best of all."""
    demands = msgspec.structs.replace(
        problem.demands, offload="never", offload_layers=(), offload_optimizer="never"
    )
    return _cluster(_with(problem, demands=demands), host_link=None, host_memory_bytes=None)


def more_memory(problem: Problem) -> Problem:
    """A tenth more memory on each GPU, and a byte."""
    more = problem.cluster.memory_bytes // 10 + 1
    groups = tuple(
        msgspec.structs.replace(group, memory_bytes=group.memory_bytes + more)
        for group in problem.cluster.gpus
    )
    return _cluster(problem, memory_bytes=problem.cluster.memory_bytes + more, gpus=groups)


def faster_links(problem: Problem) -> Problem:
    """Half as much again over each link, and half the latency."""

    def faster(link: Link) -> Link:
        return msgspec.structs.replace(
            link, bandwidth=1.5 * link.bandwidth, latency=link.latency / 2
        )

    cluster = problem.cluster
    network = cluster.network
    if network is not None:
        rates = ("rail_bandwidth", "ring_bandwidth", "switch_bandwidth")
        latencies = ("start", "step", "hop", "ramp")
        network = _scaled_network(network, rates, 1.5)
        network = _scaled_network(network, latencies, 0.5)
    return _cluster(
        problem,
        intra_node=faster(cluster.intra_node),
        inter_node=faster(cluster.inter_node),
        network=network,
    )


def _scaled_network(network: Network, names: tuple[str, ...], factor: float) -> Network:
    old = ((name, getattr(network, name)) for name in names)
    return msgspec.structs.replace(network, **{name: own and factor * own for name, own in old})


def no_overhead(problem: Problem) -> Problem:
    """Actions without a fixed cost."""
    return _cluster(problem, action_overhead=0.0, compute_slowdown=1.0)


def one_more_node(problem: Problem) -> Problem:
    """One node more; its GPUs are of the last kind."""
    cluster = problem.cluster
    groups = tuple(
        msgspec.structs.replace(group, count=group.count + cluster.gpus_per_node)
        if group is cluster.gpus[-1]
        else group
        for group in cluster.gpus
    )
    return _cluster(problem, num_nodes=cluster.num_nodes + 1, gpus=groups)


def one_more_gpu_per_node(problem: Problem) -> Problem | None:
    """One GPU more on each node, where all are alike."""
    if problem.cluster.gpus or problem.cluster.network:
        # More GPUs share the same rails.
        return None
    return _cluster(problem, gpus_per_node=problem.cluster.gpus_per_node + 1)


def more_schedules(problem: Problem) -> Problem | None:
    """All schedules with whole backwards and one stage per rank, besides the demanded ones."""
    if problem.demands.replicas_per_stage or problem.objective == "bottleneck":
        return _demands(problem, schedules=CLASSIC)
    names = {*problem.demands.schedules, *CLASSIC, "eager-1f1b", "zb-h1"}
    return _demands(problem, schedules=tuple(name for name in SCHEDULES if name in names))


def fewer_demands(problem: Problem) -> Problem | None:
    """Any stages and replicas, and no pins."""
    return _demands(
        problem,
        num_stages=None,
        num_replicas=None,
        stages_per_rank=None,
        pins=(),
        same_stage=(),
        different_stage=(),
    )


def recompute_where_memory_asks(problem: Problem) -> Problem | None:
    """Layers may be recomputed, besides keeping all."""
    if problem.demands.recompute != "never":
        return None
    return _demands(problem, recompute="auto")


def replicas_of_their_own(problem: Problem) -> Problem | None:
    """Each stage may have its own number of replicas."""
    demands, classic = problem.demands, set(problem.demands.schedules) <= set(CLASSIC)
    able = classic and demands.num_replicas is None and problem.objective == "step"
    if not able or demands.stages_per_rank not in (None, 1) or problem.cluster.gpus:
        # Where GPUs differ, such stages take GPUs in their order: another space, not a larger one.
        return None
    return _demands(problem, replicas_per_stage=True)


LARGER: tuple[Change, ...] = (
    more_memory,
    faster_links,
    no_overhead,
    one_more_node,
    one_more_gpu_per_node,
    more_schedules,
    fewer_demands,
    recompute_where_memory_asks,
    replicas_of_their_own,
)
"""Changes after which no answer is worse."""

CHOICES = LARGER[5:]
"""The changes that only open choices: a plan from before is still a plan."""


def twice_as_slow(problem: Problem) -> Problem:
    """All seconds times 2, all bandwidths divided by 2. Floats keep each digit."""

    def layer(la: Layer) -> Layer:
        names = [name for name in la.__struct_fields__ if name.endswith(("_time", "_spread"))]
        again = {
            name: msgspec.structs.replace(own, extra_time=2 * own.extra_time)
            for name in ("recompute", "selective")
            if (own := getattr(la, name)) is not None
        }
        return msgspec.structs.replace(
            la, **{name: 2 * (getattr(la, name) or 0.0) for name in names}, **again
        )

    def link(own: Link) -> Link:
        return msgspec.structs.replace(own, bandwidth=own.bandwidth / 2, latency=2 * own.latency)

    def host(own: HostLink) -> HostLink:
        return msgspec.structs.replace(own, bandwidth=own.bandwidth / 2, latency=2 * own.latency)

    cluster = problem.cluster
    graph = msgspec.structs.replace(problem.graph, layers=tuple(map(layer, problem.graph.layers)))
    network = cluster.network
    if network is not None:
        rates = ("rail_bandwidth", "ring_bandwidth", "switch_bandwidth")
        latencies = ("start", "step", "hop", "ramp", "peer")
        network = _scaled_network(_scaled_network(network, rates, 0.5), latencies, 2.0)
    return _cluster(
        _with(problem, graph=graph),
        intra_node=link(cluster.intra_node),
        inter_node=link(cluster.inter_node),
        host_link=host(cluster.host_link) if cluster.host_link else None,
        network=network,
        action_overhead=2 * cluster.action_overhead,
    )


def renamed(problem: Problem, rng: random.Random) -> tuple[Problem, dict[str, str]]:
    """New names for layers, values, inputs, parameters and GPUs, and lists in another order.

    Returns the problem, and the old name of each new layer name.
    """
    graph = problem.graph
    fresh = rng.sample(range(100, 999), len(graph.layers))
    name = {la.name: f"m{at}.{la.name[::-1]}" for la, at in zip(graph.layers, fresh, strict=True)}
    value = {v.name: f"w{at}" for at, v in enumerate(rng.sample(graph.values, len(graph.values)))}

    def names(own: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name[one] for one in rng.sample(own, len(own)))

    again = LayerGraph(
        layers=tuple(msgspec.structs.replace(la, name=name[la.name]) for la in graph.layers),
        values=tuple(
            msgspec.structs.replace(
                v,
                name=value[v.name],
                producer=name[v.producer],
                consumers=names(v.consumers),
                kept_by=names(v.kept_by),
                grad_extra_by=names(v.grad_extra_by),
                part_of=None if v.part_of is None else value[v.part_of],
            )
            for v in rng.sample(graph.values, len(graph.values))
        ),
        inputs=tuple(
            msgspec.structs.replace(one, name=f"i{at}", consumers=names(one.consumers))
            for at, one in enumerate(rng.sample(graph.inputs, len(graph.inputs)))
        ),
        tied=tuple(
            msgspec.structs.replace(one, name=f"t{at}", layers=names(one.layers))
            for at, one in enumerate(graph.tied)
        ),
    )
    problem = _with(problem, graph=again, demands=_renamed_demands(problem.demands, name, rng))
    return _renamed_gpus(problem), {new: old for old, new in name.items()}


def _renamed_demands(demands: Demands, name: dict[str, str], rng: random.Random) -> Demands:
    def names(own: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name[one] for one in rng.sample(own, len(own)))

    pins = [msgspec.structs.replace(pin, layer=name[pin.layer]) for pin in demands.pins]
    lists = [field for field in demands.__struct_fields__ if field.endswith("_layers")]
    return msgspec.structs.replace(
        demands,
        schedules=demands.schedules[::-1],
        pins=tuple(pins[::-1]),
        same_stage=tuple(map(names, demands.same_stage[::-1])),
        different_stage=tuple(map(names, demands.different_stage[::-1])),
        **{field: names(getattr(demands, field)) for field in lists},
    )


def _renamed_gpus(problem: Problem) -> Problem:
    cluster: Cluster = problem.cluster
    groups = tuple(
        msgspec.structs.replace(group, name=f"other{at}") for at, group in enumerate(cluster.gpus)
    )
    return _cluster(problem, gpu="other", gpus=groups, source="elsewhere")
