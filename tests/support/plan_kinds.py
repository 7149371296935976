"""Small plans of every kind, each made by the planner, with the profiles that it was made from."""

import functools
import time
from typing import Any
from unittest import mock

import msgspec

from autopart.records.cluster import Cluster, GpuGroup, HostLink, Link
from autopart.records.layer_graph import Input, Layer, LayerGraph, Recompute, TiedParameter
from autopart.records.microbatch_sizes import scale_profile
from autopart.records.plan import Plan
from autopart.records.profile import Profile
from autopart.search.planner import solve
from tests.support.problems import chain_graph, cluster, layer, profile, value
from tests.support.tensor_profiles import with_degrees

HOST = HostLink(bandwidth=300.0, latency=0.01, overlaps=True)
SLOW = {"intra_node": Link(bandwidth=500.0, latency=0.01), "action_overhead": 0.02}


def uneven_layer(at: int, **fields: Any) -> Layer:
    """Layer number `at`: each has other numbers, and all policies are possible."""
    base = {
        "forward_time": 1 + at % 3 / 4,
        "update_time": 0.01 * at,
        "param_bytes": 40,
        "grad_bytes": 40,
        "num_trainable": 10,
        "stash_bytes": 60 + at,
        "workspace_bytes": 9 + at,
        "recompute": Recompute(extra_time=1.0, stash_bytes=5),
        "selective": Recompute(extra_time=0.25, stash_bytes=30),
    }
    return layer(f"l{at}", **(base | fields))


def rich_graph(num_layers: int = 5) -> LayerGraph:
    """A chain with a skip, an input and a tied parameter."""
    chain = chain_graph(*(uneven_layer(at) for at in range(num_layers)), num_bytes=20)
    skip = msgspec.structs.replace(value("l0", "l3", bytes=7), name="skip")
    tied = TiedParameter(
        name="w", layers=("l0", "l4"), param_bytes=40, grad_bytes=40, num_trainable=10
    )
    ids = Input(name="ids", consumers=("l0", "l2"), bytes=6)
    return msgspec.structs.replace(chain, values=(*chain.values, skip), inputs=(ids,), tied=(tied,))


RICH = profile(rich_graph())
ROW = profile(chain_graph(*(uneven_layer(at) for at in range(5)), num_bytes=20))
LARGE_VALUES = profile(
    chain_graph(*(layer(f"l{at}", stash_bytes=100) for at in range(4)), num_bytes=100)
)
BRANCHES = profile(
    LayerGraph(
        layers=tuple(uneven_layer(at) for at in range(5)),
        values=(value("l0", "l1", "l2"), value("l1", "l4"), value("l2", "l3"), value("l3", "l4")),
    )
)
HALF = msgspec.structs.replace(
    profile(chain_graph(*(uneven_layer(at, param_bytes=20, grad_bytes=20) for at in range(5)))),
    dtype="bfloat16",
)
MIXED = (
    GpuGroup(count=2, name="fast", memory_bytes=1 << 40, speed=1.5),
    GpuGroup(count=1, name="slow", memory_bytes=1 << 39, speed=0.7),
)


def _made(
    given: Profile | list[Profile], on: Cluster, **options: Any
) -> tuple[Plan, list[Profile]]:
    profiles = given if isinstance(given, list) else [given]
    # The limits of a search count processor seconds, so that a busy machine makes the same plans.
    with mock.patch.object(time, "perf_counter", time.process_time):
        return solve(profiles, on, **options), profiles


@functools.cache
def plan_of_kind(kind: str) -> tuple[Plan, list[Profile]]:
    """A plan with its profiles."""
    return KINDS[kind]()


def _sizes() -> tuple[Plan, list[Profile]]:
    slower = scale_profile(ROW, 2)
    layers = tuple(
        msgspec.structs.replace(la, forward_time=1.1 * la.forward_time)
        for la in slower.graph.layers
    )
    graph = msgspec.structs.replace(slower.graph, layers=layers)
    measured = msgspec.structs.replace(slower, graph=graph, warnings=())
    return _made([ROW, measured], cluster(1, 3, **SLOW), global_batch=8, microbatch_sizes=[1, 2, 4])


KINDS = {
    "two stages, two replicas, two nodes": lambda: _made(
        RICH, cluster(2, 2, **SLOW, reserve_bytes=7), num_microbatches=4, num_stages=2
    ),
    "one stage on one GPU": lambda: _made(ROW, cluster(1, 1), num_microbatches=2),
    "gpipe": lambda: _made(ROW, cluster(1, 3, **SLOW), num_microbatches=3, schedule="gpipe"),
    "eager 1f1b": lambda: _made(
        LARGE_VALUES,
        cluster(1, 3, intra_node=Link(bandwidth=200.0), memory_bytes=2000),
        num_microbatches=6,
        schedule="eager-1f1b",
        num_stages=3,
    ),
    "interleaved": lambda: _made(
        ROW, cluster(1, 2, **SLOW), num_microbatches=4, schedule="interleaved-1f1b,looped-bfs",
        stages_per_rank=2,
    ),
    "zero bubble": lambda: _made(
        RICH, cluster(1, 2, **SLOW), num_microbatches=4, schedule="zb-h1,zb-h2", num_stages=2
    ),
    "a V": lambda: _made(
        ROW, cluster(1, 2, **SLOW), num_microbatches=4, schedule="zbv", num_replicas=1
    ),
    "orders of their own": lambda: _made(
        LARGE_VALUES,
        cluster(1, 2, intra_node=Link(bandwidth=100.0)),
        num_microbatches=4,
        schedule="auto",
        num_replicas=1,
    ),
    "orders of their own under a memory limit": lambda: _made(
        LARGE_VALUES,
        cluster(1, 2, intra_node=Link(bandwidth=100.0), memory_bytes=1000),
        num_microbatches=8,
        schedule="auto",
        num_replicas=1,
    ),
    "replicas per stage": lambda: _made(
        profile(chain_graph(uneven_layer(0), uneven_layer(1, forward_time=9.0), uneven_layer(2))),
        cluster(2, 2, **SLOW),
        num_microbatches=5,
        replicas_per_stage=True,
    ),
    "a tensor degree": lambda: _made(
        with_degrees(RICH, 2, whole=30), cluster(2, 2, **SLOW), num_microbatches=4, num_stages=2,
        tensor=2, sequence_parallel="on",
    ),
    "any tensor degree": lambda: _made(
        with_degrees(ROW, 2, 3, whole=1), cluster(1, 2, **SLOW), num_microbatches=2,
        num_replicas=1, num_stages=1, tensor="auto",
    ),
    "bottleneck": lambda: _made(
        ROW, cluster(1, 3, **SLOW), num_microbatches=4, objective="bottleneck", num_stages=3
    ),
    "recompute": lambda: _made(
        ROW, cluster(1, 2, memory_bytes=700, **SLOW), num_microbatches=4, num_stages=2,
        recompute="auto",
    ),
    "selective recompute": lambda: _made(
        ROW, cluster(1, 2, **SLOW), num_microbatches=4, num_stages=2, recompute="selective",
        recompute_layers=["l1"], keep_layers=["l2"],
    ),
    "offload": lambda: _made(
        ROW,
        cluster(1, 2, memory_bytes=760, host_link=HOST, host_memory_bytes=4000, **SLOW),
        num_microbatches=4,
        num_stages=2,
        offload="auto",
    ),
    "optimizer on the host": lambda: _made(
        ROW,
        cluster(1, 2, host_link=HOST, **SLOW),
        num_microbatches=4,
        num_stages=2,
        offload_optimizer="always",
    ),
    "everything at once": lambda: _made(
        RICH,
        cluster(2, 2, memory_bytes=700, host_link=HOST, inter_node=Link(bandwidth=50.0), **SLOW),
        num_microbatches=4,
        recompute="auto",
        offload="auto",
        offload_optimizer="auto",
    ),
    "several sizes": _sizes,
    "a size without a plan": lambda: _made(
        ROW, cluster(1, 2, **SLOW), global_batch=4, microbatch_sizes=[2, 4], num_replicas=2
    ),
    "pins": lambda: _made(
        ROW,
        cluster(1, 3, **SLOW),
        num_microbatches=4,
        pins={"l0": 0, "l4": 1},
        same_stage=[["l1", "l2"]],
        different_stage=[["l2", "l3"]],
    ),
    "zero-1 in mixed precision": lambda: _made(
        HALF, cluster(1, 4, **SLOW), num_microbatches=4, num_stages=2, zero1=True,
        gradient_dtype="float32", optimizer="sgd-momentum",
    ),
    "an optimizer in bytes": lambda: _made(ROW, cluster(1, 2), num_microbatches=2, optimizer="6"),
    "different GPUs": lambda: _made(
        ROW,
        cluster(1, 3, memory_bytes=1 << 39, gpus=MIXED, **SLOW),
        num_microbatches=4,
        num_stages=2,
    ),
    "branches": lambda: _made(BRANCHES, cluster(1, 3, **SLOW), num_microbatches=4, num_stages=3),
    "idle GPUs on a slow machine": lambda: _made(
        ROW,
        cluster(
            1, 3, compute_slowdown=1.2, sends_overlap=False,
            intra_node=Link(bandwidth=200.0, latency=0.05, all_reduce_factor=1.5),
        ),
        num_microbatches=4,
        num_stages=2,
    ),
}  # fmt: skip
"""For each kind of plan, a function that makes one."""
