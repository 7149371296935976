"""The formats of the files that a user hands in: valid seeds, their loaders, and command lines."""

import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from autopart.peers.dnn_partitioning import file as dnn_file
from autopart.peers.formats import import_profile
from autopart.peers.piper import file as piper_file
from autopart.records.cluster import cluster_of, load_cluster
from autopart.records.files import decode_json, encode, read_content
from autopart.records.mixed_cluster import mixed_cluster
from autopart.records.plan import load_plan
from autopart.records.profile import load_profile
from autopart.records.run_result import RunResult
from tests.support.measured_runs import as_predicted
from tests.support.plan_kinds import plan_of_kind
from tests.support.samples import sample_profile

PLANS = (
    "two stages, two replicas, two nodes",
    "zero bubble",
    "a V",
    "replicas per stage",
    "everything at once",
    "different GPUs",
)
"""Kinds of plans whose files are seeds."""


class Format(NamedTuple):
    """One kind of file."""

    weight: int
    """Its share of the inputs."""
    name: str
    """The file's name in the scratch folder."""
    seeds: Callable[[], list[bytes]]
    """Valid files."""
    load: Callable[[Path], list[Any]]
    """Reads a file. Its results are checked by the witness."""
    verbs: tuple[str, ...]
    """Command lines that read the file. `good-…` are valid files beside it."""


def _run_result(path: Path) -> list[Any]:
    return [decode_json(read_content(path), RunResult, str(path))]


def _piper(path: Path) -> list[Any]:
    return [piper_file.read(path), import_profile("piper", path)]


def _dnn(path: Path) -> list[Any]:
    return [dnn_file.read(path), import_profile("dnn-partitioning", path)]


SOLVE = "solve --time-limit 1 -o out.json"

FORMATS = {
    "profile": Format(
        28, "profile.json", lambda: [encode(one) for one in _profiles()],
        lambda path: [load_profile(path)],
        (
            f"{SOLVE} --profile profile.json --cluster good-cluster.json",
            f"{SOLVE} --profile profile.json --gpus 3 --gpu h100-sxm --solver ilp",
            f"{SOLVE} --profile profile.json --gpus 4 --gpu l40s --recompute auto --offload auto --json",
            f"{SOLVE} --profile profile.json --gpus 2 --gpu cpu --microbatch-size 1,2 --global-batch 8",
            f"{SOLVE} --profile profile.json --gpus 2 --gpu h100-sxm --memory-sweep 2",
            f"{SOLVE} --gpus 2 --gpu h100-sxm --objective bottleneck",
            "verify good-plan.json --profile profile.json",
            "simulate good-plan.json --noise profile --profile profile.json --draws 9",
        ),
    ),
    "plan": Format(
        36, "plan.json", lambda: [encode(plan_of_kind(kind)[0]) for kind in PLANS],
        lambda path: [load_plan(path)],
        (
            "show plan.json",
            "show plan.json --json",
            "show plan.json --memory",
            "simulate plan.json --noise 5% --draws 5 --json",
            "simulate plan.json --asynchronous --trace out-trace.json",
            "verify plan.json --profile good-profile.json",
            "export plan.json --to torch -o out-torch",
            "export plan.json --to deepspeed -o out-deepspeed",
            "export plan.json --to megatron -o out-megatron",
            "export plan.json --to torchtitan -o out-torchtitan --json",
            "export plan.json --to device-map -o out-map",
            "export plan.json --to primus -o out-primus",
            "verify plan.json --profile good-profile.json --json",
        ),
    ),
    "cluster": Format(
        12, "cluster.json",
        lambda: [encode(cluster_of("h100-sxm", 4, 2)), encode(_mixed())],
        lambda path: [load_cluster(path)],
        (
            f"{SOLVE} --profile good-profile.json --cluster cluster.json",
            f"{SOLVE} --profile good-profile.json --cluster cluster.json --replicas per-stage --json",
            f"{SOLVE} --profile good-profile.json --cluster cluster.json --gpus 2 --schedule zb-h1",
        ),
    ),
    "piper": Format(
        7, "piper.json", lambda: [json.dumps(_piper_net(seed)).encode() for seed in range(3)],
        _piper,
        (
            "bottleneck piper piper.json",
            "bottleneck piper piper.json --gpus 3 --json",
            "import piper piper.json -o out-profile.json",
        ),
    ),
    "dnn-partitioning": Format(
        7, "dnn.json", lambda: [json.dumps(_dnn_graph(seed)).encode() for seed in range(3)],
        _dnn,
        (
            "bottleneck dnn-partitioning dnn.json --time-limit 1",
            "bottleneck dnn-partitioning dnn.json --no-contiguity --time-limit 1 --json",
            "import dnn-partitioning dnn.json -o out-profile.json",
        ),
    ),
    "pipedream": Format(
        6, "graph.txt", lambda: [_text_graph(seed) for seed in range(3)],
        lambda path: [import_profile("pipedream", path)],
        (
            "bottleneck pipedream graph.txt --gpus 4 --bandwidth 1GB/s --time-limit 1",
            "bottleneck pipedream graph.txt --gpus 4 --nodes 2 --bandwidth 9GB/s --bandwidth 1GB/s "
            "--time-limit 1 --json",
            "import pipedream graph.txt -o out-profile.json --json",
        ),
    ),
    "dapple": Format(
        2, "net-3-pbs-8.txt", lambda: [_text_graph(seed) for seed in range(3, 5)],
        lambda path: [import_profile("dapple", path)],
        ("import dapple net-3-pbs-8.txt -o out-profile.json",),
    ),
    "run result": Format(
        2, "run.json", lambda: [encode(as_predicted(plan_of_kind(PLANS[0])[0]))], _run_result, ()
    ),
}  # fmt: skip
"""Each format by its name."""


@functools.cache
def good_files() -> dict[str, bytes]:
    """Valid files that stand beside a mutant, by name."""
    plan, profiles = plan_of_kind(PLANS[0])
    return {
        "good-profile.json": encode(profiles[0]),
        "good-plan.json": encode(plan),
        "good-cluster.json": encode(cluster_of("h100-sxm", 4, 2)),
    }


def _profiles() -> list[Any]:
    return [sample_profile(), *(plan_of_kind(kind)[1][0] for kind in PLANS[:1])]


def _mixed() -> Any:
    return mixed_cluster([("h100-sxm", 2), ("l40s", 2)], "h100-sxm", "float32")


def _edges(rng: random.Random, count: int) -> list[tuple[int, int]]:
    """A chain with some skips."""
    chain = [(v - 1, v) for v in range(1, count)]
    return chain + [(u, v) for v in range(count) for u in range(v - 1) if rng.random() < 0.2]


def _piper_net(seed: int) -> Any:
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


def _dnn_graph(seed: int) -> Any:
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


def _text_graph(seed: int) -> bytes:
    rng = random.Random(seed)
    nodes = [
        f"node{v} -- Linear(in={v}, out=3) -- forward_compute_time={1.5 + v}, "
        f"backward_compute_time={2.5 + v}, activation_size={'[8.0; 8.0]' if v == 2 else 64.0}, "
        f"parameter_size={100.0 * v}"
        for v in range(6)
    ]
    nodes[0] = nodes[0].replace("Linear", "Input")
    return "\n".join(nodes + [f"\tnode{u} -- node{v}" for u, v in _edges(rng, 6)]).encode()
