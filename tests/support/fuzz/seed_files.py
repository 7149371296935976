"""Valid files of every format, which the fuzzer changes."""

import functools
import random
from typing import Any

import msgspec

import autopart
from autopart.records.calibration import Calibration, Fit, MeasuredKernel, Validity
from autopart.records.cluster import Cluster, Link, cluster_of
from autopart.records.expert_load import LayerLoad
from autopart.records.group_variants import Collective, GroupVariant, LayerCollectives
from autopart.records.kernels import kernels_of
from autopart.records.known_clusters import find_preset, preset_cluster
from autopart.records.known_gpus import find_gpu
from autopart.records.measured_collectives import MeasuredCollective, MeasuredCollectives
from autopart.records.mixed_cluster import mixed_cluster
from autopart.records.plan import Plan
from autopart.records.profile import Profile
from autopart.records.rank_group import Group
from autopart.records.run_result import RunResult
from autopart.records.size import Sizing
from autopart.search.planner import solve
from tests.support.degree_plans import by_hand
from tests.support.expert_profiles import with_experts
from tests.support.measured_runs import as_predicted
from tests.support.plan_kinds import ROW, plan_of_kind
from tests.support.problems import cluster
from tests.support.samples import sample_profile
from tests.support.sharded_plans import sample_sharded_plan
from tests.support.sizings import random_case
from tests.support.tensor_profiles import with_degrees

FIRST = "two stages, two replicas, two nodes"
"""The kind of the plan that stands beside a changed file."""
KINDS = (
    FIRST,
    "zero bubble",
    "a V",
    "replicas per stage",
    "everything at once",
    "different GPUs",
    "interleaved",
    "several sizes",
    "orders of their own under a memory limit",
    "any tensor degree",
)
"""Kinds of plans whose files are seeds."""
LOAD = LayerLoad(layer="experts", expert=2, imbalance=1.5, largest=1.75)


def profiles() -> list[Profile]:
    """Profiles of one GPU alone, and of GPUs in tensor, context and expert groups."""
    tensor = msgspec.structs.replace(with_degrees(ROW, 2, whole=30), microbatch_size=4)
    return [sample_profile(), plan_of_kind(FIRST)[1][0], tensor, in_groups()]


@functools.cache
def in_groups() -> Profile:
    """A profile with an expert degree whose load is uneven, and with a context degree in both exchanges."""
    given = with_experts(loads=[LOAD])
    gather = Collective(kind="all_gather", bytes=40, phase="forward", among="context")
    ring = msgspec.structs.replace(gather, kind="ring", bytes=20, compute_time=0.5)
    variants = tuple(
        GroupVariant(
            group=Group(context=2, exchange=exchange),
            graph=given.graph,
            collectives=(LayerCollectives(layer="dense", collectives=(one,)),),
        )
        for exchange, one in ((msgspec.UNSET, gather), ("ring", ring))
    )
    return msgspec.structs.replace(given, variants=(*given.variants, *variants))


@functools.cache
def plans() -> list[Plan]:
    """Plans of all kinds: with orders of all schedules, rank groups, and state that is shared."""
    on = cluster(1, 4, intra_node=Link(bandwidth=500.0, latency=0.01))
    grouped = [
        solve(in_groups(), on, num_microbatches=4, expert="2", expert_imbalance="measured"),
        solve(in_groups(), on, num_microbatches=4, context="2", context_exchange="ring"),
        by_hand((2,), (2, 1)),
        sample_sharded_plan("zero2"),
        sample_sharded_plan("zero3"),
    ]
    return [*(plan_of_kind(kind)[0] for kind in KINDS), *grouped]


def clusters() -> list[Cluster]:
    """Clusters of equal GPUs, of several kinds, with a network record, and with measured collectives."""
    mixed = mixed_cluster([("h100-sxm", 2), ("l40s", 2)], "h100-sxm", "float32")
    known = preset_cluster(find_preset("dgx-h100"), nodes=2)
    one = MeasuredCollective(bandwidth=1e9, latency=1e-4)
    own = MeasuredCollectives(
        ranks=4, all_reduce=one, all_gather=one, reduce_scatter=one, all_to_all=one
    )
    probed = msgspec.structs.replace(
        cluster_of("cpu", 4), intra_node=Link(bandwidth=1e9, latency=1e-4, collectives=own)
    )
    return [cluster_of("h100-sxm", 4, 2), mixed, known, probed]


def calibrations() -> list[Calibration]:
    """A calibration that was fitted to steps, and one from kernels."""
    gpu = find_gpu("a100-sxm-80gb")
    steps = Calibration(
        gpu="a100-sxm-80gb",
        dtype="bfloat16",
        kernels=kernels_of(gpu, "megatron"),
        source="steps",
        made_from="runs.csv",
        fit=Fit(
            rows=24,
            kinds=("products",),
            mean_error=0.01,
            worst_error=0.02,
            held_out_error=0.031,
            held_out_worst=0.05,
        ),
        validity=Validity(least_params=10**9, most_params=10**10, microbatch_sizes=(1, 2)),
    )
    kernel = MeasuredKernel(
        kind="products", operation="mm", shape=(4096, 4096, 4096), amount=1.4e11, seconds=6e-4
    )
    return [steps, msgspec.structs.replace(steps, source="kernels", measured=(kernel,))]


def runs() -> list[RunResult]:
    """Results of runs: one, and one that counted the entries of experts."""
    plan = plan_of_kind(FIRST)[0]
    return [as_predicted(plan), as_predicted(plan, expert_loads=(LOAD,))]


@functools.cache
def sizings() -> list[Sizing]:
    """The answer to how many GPUs a training needs."""
    case = random_case(1)._replace(within_days=1e6, budget=1e12)
    most = case.most_nodes * max(node.gpus_per_node for node in case.clusters.values())
    return [autopart.size(case.profiles, case.prices, most_gpus=most, **case.question).sizing]


STEPS = (
    b"model,gpus,batch,seconds\nzoo:llama-8b,8,32,1.5\nzoo:llama-8b,16,32,0.8\nzoo:llama-8b,8,64,2.9\n",
    b"model,gpus,nodes,tensor,pipeline,microbatch,batch,schedule,recompute,seconds\n"
    b"zoo:gpt2-350m,8,1,2,2,4,64,1f1b,never,0.5\nzoo:gpt2-350m,16,2,1,4,2,64,interleaved-1f1b,always,0.4\n",
)
"""Tables of steps for `autopart calibrate from-steps`."""

LAYOUTS = (
    b"Et*8|t*8|t*8|t*8L",
    b"--pipeline-model-parallel-layout 'Ettt|(tt|)*3L'\n",
    b"model:\n  pipeline_model_parallel_layout:\n    - [embedding, decoder]\n    - [decoder, loss]\n",
    b"module_fqns_per_model_part = [\n  ['tok_embeddings', 'layers.0'],\n  ['layers.1', 'norm', 'output'],\n]\n",
    b"PARTS = (0, 8, 17, 26, 35)\n",
    b"export VLLM_PP_LAYER_PARTITION='7,9,9,7'\n",
    b'{"model.embed_tokens": 0, "model.layers.0": 0, "model.layers": 1, "model.norm": 1, "lm_head": 1}',
    b'{"tokens": 0, "blocks": 0, "norm": 1, "head": 1}',
)
"""Layouts of the frameworks that `autopart import-plan` reads."""


def _edges(rng: random.Random, count: int) -> list[tuple[int, int]]:
    """A chain with some skips."""
    chain = [(v - 1, v) for v in range(1, count)]
    return chain + [(u, v) for v in range(count) for u in range(v - 1) if rng.random() < 0.2]


def piper_net(seed: int) -> Any:
    """A network for Piper."""
    rng = random.Random(seed)
    edges = _edges(rng, 5)

    def choice(name: str, time: float, stash: float, node: int) -> Any:
        return {
            "id": name,
            "timePerSample": time,
            "parameterSize": 40.0,
            "memoryUsageA": stash,
            "memoryUsageB": 10.0,
            "syncTimeFw": {str(u): 3.0 for u, v in edges if v == node},
            "syncTimeBw": {str(v): 3.0 for u, v in edges if u == node},
        }

    def node(v: int) -> Any:
        pair = [choice("vanilla", 3.0 + v, 9.0, v), choice("again", 4.0 + v, 1.0, v)]
        return {"id": v, "name": f"n{v}", "TMPCs": {"1": pair, "2": pair[:1]}}

    return {
        "maxMemoryPerDevice": 1000.0,
        "maxDevices": 4,
        "bandwidth": 100.0,
        "mbsInBatch": 4,
        "nodes": [node(v) for v in range(5)],
        "edges": [{"sourceId": u, "destId": v, "communicationCost": 5.0} for u, v in edges],
    }


def dnn_graph(seed: int) -> Any:
    """A graph for dnn-partitioning."""
    rng = random.Random(seed)
    edges, count = _edges(rng, 4), 4
    both = [(u, v) for u, v in edges] + [(count + v, count + u) for u, v in edges]
    both += [(count - 1, 2 * count - 1)]
    return {
        "maxSizePerFPGA": 100.0,
        "maxFPGAs": 2,
        "maxCPUs": 1,
        "nodes": [
            {
                "id": v,
                "fpgaLatency": 2.0,
                "cpuLatency": 20.0,
                "supportedOnFpga": True,
                "isBackwardNode": v >= count,
                "colorClass": v % count,
                "size": 5.0,
                "name": f"n{v}",
            }
            for v in range(2 * count)
        ],
        "edges": [{"sourceId": u, "destId": v, "cost": 0.5, "size": 8.0} for u, v in both],
    }


def text_graph(seed: int) -> bytes:
    """A graph for PipeDream and DAPPLE."""
    rng = random.Random(seed)
    nodes = [
        f"node{v} -- Linear(in={v}, out=3) -- forward_compute_time={1.5 + v}, "
        f"backward_compute_time={2.5 + v}, activation_size={'[8.0; 8.0]' if v == 2 else 64.0}, "
        f"parameter_size={100.0 * v}"
        for v in range(6)
    ]
    nodes[0] = nodes[0].replace("Linear", "Input")
    return "\n".join(nodes + [f"\tnode{u} -- node{v}" for u, v in _edges(rng, 6)]).encode()
