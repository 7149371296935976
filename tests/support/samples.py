"""A realistic profile, and plans made from it, for tests on tables and commands."""

import functools
import itertools

import msgspec

from autopart.records.cluster import Cluster, Link
from autopart.records.layer_graph import Input, Layer, LayerGraph, TiedParameter, Value
from autopart.records.plan import Plan
from autopart.records.profile import Device, Profile, Source, WholeModel
from autopart.records.size import Sizing
from autopart.search.planner import solve
from autopart.search.sizing import size

MIB = 1 << 20
NAMES = ("embed", *(f"h.{i}" for i in range(6)), "norm", "head", "loss")


def sample_profile(**changes: object) -> Profile:
    """Six equal blocks between an embedding and a head that share their weights."""
    profile = Profile(
        method="measured",
        source=Source(model="model.py", graph_hash="0" * 16, num_params=9_000_000, software={}),
        device=Device(kind="cpu", name="Some CPU", threads=1),
        dtype="float32",
        microbatch_size=2,
        graph=sample_graph(),
        whole=WholeModel(
            forward_time=0.030,
            backward_time=0.060,
            layers_forward_time=0.029,
            layers_backward_time=0.058,
            stash_bytes=40 * MIB,
            layers_stash_bytes=40 * MIB,
        ),
    )
    return msgspec.structs.replace(profile, **changes)


def sample_graph() -> LayerGraph:
    """`sample_profile`'s layers; each passes 1 MiB to the next."""
    blocks = [_layer(f"h.{i}", "Block", 4.0, 8, f"h.{0}" if i else None) for i in range(6)]
    layers = (
        _layer("embed", "Embedding", 0.5, 16),
        *blocks,
        _layer("norm", "LayerNorm", 0.25, 0),
        _layer("head", "Linear", 4.0, 16),
        _layer("loss", "loss", 0.25, 0),
    )
    values = tuple(
        Value(name=f"{a}.out", producer=a, consumers=(b,), bytes=MIB, has_gradient=True)
        for a, b in itertools.pairwise(NAMES)
    )
    shared = TiedParameter(
        name="embed.weight",
        layers=("embed", "head"),
        param_bytes=16 * MIB,
        grad_bytes=16 * MIB,
        num_trainable=4 * MIB,
    )
    inputs = (Input(name="ids", consumers=("embed",), bytes=1024),)
    return LayerGraph(layers=layers, values=values, inputs=inputs, tied=(shared,))


def _layer(name: str, kind: str, ms: float, mib: int, same_as: str | None = None) -> Layer:
    return Layer(
        name=name,
        kind=kind,
        forward_time=ms * 1e-3,
        input_grad_time=ms * 1e-3,
        weight_grad_time=ms * 1e-3 if mib else 0.0,
        param_bytes=mib * MIB,
        grad_bytes=mib * MIB,
        num_trainable=mib * MIB // 4,
        stash_bytes=int(2 * ms * MIB),
        workspace_bytes=MIB,
        same_as=same_as,
    )


def sample_cluster(num_nodes: int = 1, gpus_per_node: int = 4) -> Cluster:
    """GPUs with 1 GiB each, and links that matter."""
    return Cluster(
        gpu="test-gpu",
        num_nodes=num_nodes,
        gpus_per_node=gpus_per_node,
        memory_bytes=1 << 30,
        intra_node=Link(bandwidth=50e9),
        inter_node=Link(bandwidth=5e9, latency=1e-5),
    )


def sample_plan(num_stages: int = 2, num_replicas: int = 1, num_microbatches: int = 4) -> Plan:
    """The planner's plan for `sample_profile`, with this shape on two nodes."""
    per_node = max(1, num_stages * num_replicas // 2)
    return solve(
        sample_profile(),
        sample_cluster(2, per_node),
        num_microbatches=num_microbatches,
        num_stages=num_stages,
        num_replicas=num_replicas,
    )


@functools.cache
def sample_sizing() -> Sizing:
    """How many CPUs `sample_profile` needs for a million tokens, within an hour and a budget."""
    return size(
        sample_profile(),
        {"cpu": 0.5},
        tokens=1e6,
        within_days=1 / 24,
        budget=10.0,
        global_batch=8,
        gpus_per_node=1,
        most_gpus=2,
    ).sizing
