"""Random problems that bite: uneven outputs, slow links between nodes, memory near the least that fits."""

import random
from typing import Any, NamedTuple

import msgspec

from autopart.records.cluster import Cluster, GpuGroup, HostLink, Link
from autopart.records.layer_graph import (
    Input,
    Layer,
    LayerGraph,
    Recompute,
    SplitBackward,
    TiedParameter,
    Value,
)
from autopart.records.network import Network
from autopart.records.problem import LENDING, Demands, Pin, Problem
from autopart.records.training import SYNCS, Training

TRAININGS = (
    Training(),
    Training(),
    Training(zero1=True),
    Training(optimizer="sgd-momentum"),
    Training(precision="bfloat16-mixed", gradient_dtype="float32", zero1=True),
    Training(precision="bfloat16-mixed", gradient_dtype="bfloat16"),
    Training(optimizer="3", precision="bfloat16", gradient_dtype="bfloat16"),
)
MIRRORED = ("chimera", "gems")
OTHERS = (
    "eager-1f1b", "zb-h1", "zb-h2", "interleaved-1f1b", "looped-bfs", "interleaved-zb", "zbv",
    "v-half", "v-min", "dualpipev", "hanayo",
)  # fmt: skip


class Style(NamedTuple):
    """The kind of problem that is drawn."""

    most_layers: int = 6
    shapes: tuple[tuple[int, int], ...] = ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1))
    """Nodes and GPUs per node."""
    most_microbatches: int = 4
    branching: bool = False
    policies: bool = False
    """Whether layers may be recomputed or offloaded."""
    uneven: bool = False
    """Whether stages may have replicas of their own."""
    mixed_gpus: bool = False
    other_schedules: bool = False
    schedules: tuple[str, ...] = ()
    """The schedules where these are given: at least four layers then, and any number of stages."""
    mirrored: bool = False
    """Whether two pipelines run over the same ranks in opposite directions."""
    pins: bool = False
    bottleneck: bool = False
    period: bool = False
    network: bool = False
    """Whether the cluster has a network record."""
    overlap: bool = False
    """Whether syncs hide behind compute."""


def draw_problem(rng: random.Random, style: Style) -> Problem:
    """A problem of one kind. Memory is ample; `tightened` lowers it."""
    most = min(style.most_layers, 4 if style.policies else 5 if style.branching else 6)
    count = (
        rng.randint(4, style.most_layers)
        if style.schedules
        else rng.randint(1 if rng.random() < 0.1 else 2, most)
    )
    graph = draw_graph(rng, count, style)
    cluster = draw_cluster(rng, style)
    if set(style.schedules).intersection(LENDING):
        cluster = msgspec.structs.replace(cluster, sends_overlap=True, sends="buffered")
    demands = draw_demands(rng, style, graph, cluster)
    drawn = (rng.randint(1, style.most_microbatches), rng.choice(TRAININGS))
    return Problem(
        graph=graph,
        cluster=cluster,
        microbatch_size=1,
        num_microbatches=drawn[0],
        training=draw_sync(rng, drawn[1]) if style.overlap else drawn[1],
        demands=demands,
        objective="bottleneck" if style.bottleneck else "period" if style.period else "step",
    )


def draw_graph(rng: random.Random, num_layers: int, style: Style) -> LayerGraph:
    """Layers in a row, or with branches; some values skip layers, some parameters are tied."""
    names = [f"l{at}" for at in range(num_layers)]
    profiled = rng.random() < 0.5
    layers = tuple(_layer(rng, name, style, profiled=profiled) for name in names)
    values = [
        _value(rng, f"v{at}", names[at], names[at + 1 : at + 2], profiled=profiled)
        for at in range(num_layers - 1)
        if not style.branching or rng.random() < 0.6
    ]
    for number in range(rng.choice([0, 0, 1, 2]) if num_layers > 1 else 0):
        at = rng.randrange(num_layers - 1)
        later = names[at + 1 :]
        readers = rng.sample(later, rng.randint(1, min(2, len(later))))
        values.append(_value(rng, f"skip{number}", names[at], readers, profiled=profiled))
    if len(values) > 1 and rng.random() < 0.1:
        values[1] = msgspec.structs.replace(values[1], part_of=values[0].name)
    inputs = tuple(
        Input(
            name=f"in{at}",
            consumers=tuple(rng.sample(names, min(num_layers, rng.randint(1, 2)))),
            bytes=rng.randrange(12),
        )
        for at in range(rng.choice([0, 1, 2]))
    )
    return LayerGraph(layers=layers, values=tuple(values), inputs=inputs, tied=_tied(rng, layers))


def _layer(rng: random.Random, name: str, style: Style, *, profiled: bool) -> Layer:
    params = rng.choice([0, rng.randrange(1, 30)])
    stash = rng.choice([0, rng.randrange(60), rng.randrange(60)])
    forward = rng.uniform(0.2, 4.0) if rng.random() < 0.9 else 0.0
    fields: dict[str, Any] = {}
    if profiled:
        fields["backward_workspace_bytes"] = rng.randrange(30)
        fields["split_backward"] = SplitBackward(
            waiting_bytes=rng.randrange(stash + 8),
            waiting_value_bytes=rng.randrange(20),
            input_grad_workspace_bytes=rng.randrange(30),
            weight_grad_workspace_bytes=rng.randrange(30),
        )
    elif rng.random() < 0.2:
        fields["backward_workspace_bytes"] = rng.randrange(30)
    if style.policies and stash and rng.random() < 0.8:
        fields["recompute"] = Recompute(
            extra_time=forward + rng.uniform(0, 0.3), stash_bytes=rng.choice([0, stash // 5])
        )
    if style.policies and stash and rng.random() < 0.5:
        fields["selective"] = Recompute(
            extra_time=forward * rng.uniform(0.05, 0.7), stash_bytes=rng.randrange(stash)
        )
    return Layer(
        name=name,
        kind="Linear",
        forward_time=forward,
        input_grad_time=rng.uniform(0.1, 4.0),
        weight_grad_time=rng.uniform(0.1, 4.0) if params else 0.0,
        split_time=rng.choice([0.0, rng.uniform(0, 1.0)]) if params else 0.0,
        update_time=rng.choice([0.0, rng.uniform(0, 1.5)]),
        param_bytes=4 * params,
        grad_bytes=4 * rng.choice([params, params, params // 2]),
        num_trainable=params,
        buffer_bytes=rng.randrange(10),
        stash_bytes=stash,
        workspace_bytes=rng.randrange(40),
        **fields,
    )


def _value(
    rng: random.Random, name: str, maker: str, readers: list[str], *, profiled: bool
) -> Value:
    gradient = rng.random() < 0.85
    extra = profiled and gradient and readers and rng.random() < 0.2
    return Value(
        name=name,
        producer=maker,
        consumers=tuple(readers),
        bytes=rng.choice([1, rng.randrange(1, 12), rng.randrange(1, 100)]),
        has_gradient=gradient,
        kept_by=tuple(who for who in (maker, *readers) if rng.random() < 0.4),
        grad_extra_bytes=rng.randrange(1, 20) if extra else 0,
        grad_extra_by=tuple(rng.sample(readers, 1)) if extra else (),
    )


def _tied(rng: random.Random, layers: tuple[Layer, ...]) -> tuple[TiedParameter, ...]:
    holders = [la for la in layers if la.num_trainable]
    if len(holders) < 2 or rng.random() < 0.65:
        return ()
    chosen = sorted(rng.sample(holders, rng.randint(2, min(3, len(holders)))), key=layers.index)
    size = min(min(la.num_trainable, la.grad_bytes // 4) for la in chosen)
    return (
        TiedParameter(
            name="tied",
            layers=tuple(la.name for la in chosen),
            param_bytes=4 * size,
            grad_bytes=4 * size,
            num_trainable=size,
        ),
    )


def draw_cluster(rng: random.Random, style: Style) -> Cluster:
    """Nodes with a link between them that is up to 100 times slower, and ample memory."""
    nodes, per_node = rng.choice(style.shapes)
    fast = rng.choice([5.0, 30.0, 1000.0])
    intra = Link(
        bandwidth=fast,
        latency=rng.choice([0.0, rng.uniform(0, 0.1)]),
        all_reduce_factor=rng.choice([1.0, 1.0, 1.3]),
    )
    groups: tuple[GpuGroup, ...] = ()
    count = nodes * per_node
    if style.mixed_gpus and count > 1:
        first = rng.randint(1, count - 1)
        counts = [first, count - first]
        if counts[1] > 1 and rng.random() < 0.3:
            counts[1:] = [1, counts[1] - 1]
        speeds = [1.0, rng.choice([0.4, 0.7, 1.6]), rng.choice([0.5, 1.0])]
        groups = tuple(
            GpuGroup(count=own, name=f"gpu{at}", memory_bytes=AMPLE, speed=speeds[at])
            for at, own in enumerate(counts)
        )
    host = rng.choice([None, 1, 2]) if not style.policies else rng.choice([None, 1, 2, 3])
    drawn = Cluster(
        gpu="test",
        num_nodes=nodes,
        gpus_per_node=per_node,
        memory_bytes=AMPLE,
        reserve_bytes=rng.choice([0, rng.randrange(20)]),
        intra_node=intra,
        inter_node=_slower_link(rng, intra),
        host_link=None
        if host is None
        else HostLink(
            bandwidth=rng.choice([10.0, 40.0, 200.0]),
            latency=rng.choice([0.0, 0.05]),
            overlaps=rng.random() < 0.7,
        ),
        host_memory_bytes=rng.choice([None, rng.randrange(1, 300) * per_node]) if host else None,
        action_overhead=rng.choice([0.0, rng.uniform(0, 0.2)]),
        compute_slowdown=rng.choice([1.0, 1.0, 1.07]),
        sends_overlap=rng.random() < 0.6,
        gpus=groups,
        network=draw_network(rng, nodes, per_node, overlap=style.overlap)
        if style.network and (not style.overlap or rng.random() < 0.7)
        else None,
    )
    # Blocking sends that wait for their receiver deadlock under 1F1B, and are refused.
    if drawn.sends_overlap and rng.random() < 0.4:
        return msgspec.structs.replace(drawn, sends="rendezvous")
    return drawn


def draw_network(
    rng: random.Random, nodes: int, per_node: int, *, overlap: bool = False
) -> Network:
    """Rails, rings, switches and latencies in any proportion, likely or not."""

    def rate(*likely: float) -> float:
        return rng.choice(likely) * rng.choice([1.0, rng.uniform(0.5, 2.0)])

    def latency(most: float) -> float:
        return rng.choice([0.0, rng.uniform(0, most)])

    switched = per_node > 1 and rng.random() < 0.5
    # Where rails differ, each permutation of GPUs is another place.
    few = nodes * per_node <= 4
    drawn = Network(
        rails=rng.choice([1, 1, 2, per_node, 2 * per_node]),
        rail_bandwidth=rate(3.0, 20.0, 200.0),
        ring_bandwidth=rate(10.0, 50.0, 1000.0),
        switch_bandwidth=rate(10.0, 100.0, 1000.0) if switched else None,
        switch_ranks=rng.randint(2, per_node) if per_node > 1 else 2,
        start=latency(0.1),
        step=latency(0.1),
        hop=latency(0.3),
        ramp=latency(0.2),
        fold=rng.choice([0.1, rng.random()]),
        tree_efficiency=rng.choice([0.45, 1.0, rng.uniform(0.1, 1.0)]),
        off_rail=rng.choice([1.0, rng.uniform(0.2, 1.0)]) if few else 1.0,
        slowdown=rng.choice([0.0, 0.15, rng.uniform(0, 1)]) if overlap else 0.15,
    )
    # A generator of its own keeps the problems of older seeds.
    if random.Random(drawn.hop).random() < 0.3:
        return msgspec.structs.replace(drawn, trees=False, serial_steps=True)
    return drawn


def draw_sync(rng: random.Random, training: Training) -> Training:
    """The training with any sync, in usual buckets (always one) or in a few small ones."""
    sync = rng.choice(SYNCS)
    size = None if sync == "end" or rng.random() < 0.3 else rng.randint(1, 150)
    return msgspec.structs.replace(training, sync=sync, bucket_bytes=size)


def _slower_link(rng: random.Random, intra: Link) -> Link:
    """The link between nodes: slower in all respects, or now and then in its bandwidth alone."""
    bandwidth = intra.bandwidth / rng.choice([1.0, 10.0, 30.0, 100.0])
    more = rng.choice([0.0, rng.uniform(0, 0.5)])
    if rng.random() < 0.15:
        return Link(bandwidth=bandwidth, latency=more)
    return Link(
        bandwidth=bandwidth,
        latency=intra.latency + more,
        all_reduce_factor=intra.all_reduce_factor * rng.choice([1.0, 1.2]),
    )


AMPLE = 1 << 40
"""Bytes that every plan fits into."""


def draw_demands(rng: random.Random, style: Style, graph: LayerGraph, cluster: Cluster) -> Demands:
    """Choices that the user might fix."""
    names = [la.name for la in graph.layers]
    count = cluster.num_nodes * cluster.gpus_per_node
    stages = rng.choice([None] * 4 + [rng.randint(1, min(len(names), count))])
    fields: dict[str, Any] = {"num_stages": stages, "replicas_per_stage": style.uneven}
    if not style.uneven and rng.random() < 0.15:
        fields["num_replicas"] = rng.randint(1, 2)
    if rng.random() < 0.2:
        fields["schedules"] = (rng.choice(["gpipe", "1f1b"]),)
    if style.other_schedules:
        fields["schedules"] = tuple(
            sorted(rng.sample(("gpipe", "1f1b", *OTHERS), rng.choice([1, 1, 2, 4])))
        )
        if rng.random() < 0.2:
            fields["stages_per_rank"] = rng.randint(1, 3)
    if style.schedules:
        fields |= {"schedules": style.schedules, "num_stages": None}
    if style.mirrored:
        fields = _mirrored(rng, fields, min(len(names), count))
    if style.pins and len(names) > 1:
        fields |= _pins(rng, names, min(2, stages or 2))
    if style.policies:
        fields |= _policies(rng, graph, cluster)
    return Demands(**fields)


def _mirrored(rng: random.Random, fields: dict[str, Any], most_stages: int) -> dict[str, Any]:
    """Demands that two pipelines over the same ranks can keep in most cases."""
    both = rng.choice([("chimera",), ("chimera",), ("gems",), ("chimera", "gems")])
    fields["schedules"] = (*both, "1f1b", "zbv") if rng.random() < 0.15 else both
    if fields["num_stages"] is not None and rng.random() < 0.8:
        fields["num_stages"] = max(2, most_stages // 2 * 2)
    if fields.get("num_replicas") is not None:
        fields["num_replicas"] = rng.choice([1, 2, 2, 4])
    if rng.random() < 0.1:
        fields["stages_per_rank"] = rng.choice([1, 2, 2])
    return fields


def _pins(rng: random.Random, names: list[str], stages: int) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if rng.random() < 0.5:
        fields["pins"] = (Pin(layer=rng.choice(names), stage=rng.randrange(stages)),)
    if rng.random() < 0.5:
        fields["same_stage"] = (tuple(rng.sample(names, 2)),)
    if rng.random() < 0.5:
        fields["different_stage"] = (tuple(rng.sample(names, rng.randint(2, min(3, len(names))))),)
    return fields


def _policies(rng: random.Random, graph: LayerGraph, cluster: Cluster) -> dict[str, Any]:
    """Demands on policies that the layers and the cluster can keep."""
    fields: dict[str, Any] = {
        "recompute": rng.choice(["never", "auto", "auto", "selective", "always"])
    }
    if cluster.host_link is not None:
        fields["offload_optimizer"] = rng.choice(["never", "never", "auto", "always"])
        fields["offload"] = rng.choice(["never", "auto", "auto", "always"])
        if fields["offload"] == "always" and fields["recompute"] in ("selective", "always"):
            fields["offload"] = "auto"
    able = {
        "recompute_layers": [la.name for la in graph.layers if la.recompute],
        "selective_layers": [la.name for la in graph.layers if la.selective],
        "offload_layers": [la.name for la in graph.layers if la.stash_bytes and cluster.host_link],
        "keep_layers": [la.name for la in graph.layers],
    }
    named: set[str] = set()
    for field, names in able.items():
        free = [name for name in names if name not in named]
        if free and rng.random() < 0.15:
            fields[field] = (rng.choice(free),)
            named.update(fields[field])
    return fields


def with_memory(problem: Problem, memory_bytes: int) -> Problem:
    """The problem with so many bytes on its smallest GPUs. Later kinds of GPUs have a little more."""
    groups = tuple(
        msgspec.structs.replace(group, memory_bytes=memory_bytes + at * (memory_bytes // 4))
        for at, group in enumerate(problem.cluster.gpus)
    )
    cluster = msgspec.structs.replace(problem.cluster, memory_bytes=memory_bytes, gpus=groups)
    return msgspec.structs.replace(problem, cluster=cluster)


def rescaled(rng: random.Random, problem: Problem, size: int) -> Problem:
    """The problem at another microbatch size: about proportional times and bytes, the same batch of 4."""
    layers = tuple(
        msgspec.structs.replace(
            la,
            forward_time=la.forward_time * size * rng.uniform(0.6, 1.0),
            input_grad_time=la.input_grad_time * size * rng.uniform(0.6, 1.0),
            weight_grad_time=la.weight_grad_time * size * rng.uniform(0.6, 1.0),
            stash_bytes=la.stash_bytes * size,
            workspace_bytes=la.workspace_bytes * size,
        )
        for la in problem.graph.layers
    )
    graph = msgspec.structs.replace(
        problem.graph,
        layers=layers,
        values=tuple(
            msgspec.structs.replace(v, bytes=v.bytes * size) for v in problem.graph.values
        ),
        inputs=tuple(
            msgspec.structs.replace(i, bytes=i.bytes * size) for i in problem.graph.inputs
        ),
    )
    return msgspec.structs.replace(
        problem, graph=graph, microbatch_size=size, num_microbatches=4 // size
    )
