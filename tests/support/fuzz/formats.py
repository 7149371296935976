"""The formats of the files that a user hands in: valid seeds, their loaders, and command lines."""

import contextlib
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from autopart.calibration.from_steps import read_runs
from autopart.errors import UsageError
from autopart.importers.megatron import units_of_layout
from autopart.importers.texts import (
    file_text,
    layout_text,
    stages_of_device_map,
    units_of_modules,
    units_of_partition,
    units_of_parts,
)
from autopart.peers.dnn_partitioning import file as dnn_file
from autopart.peers.formats import import_profile
from autopart.peers.piper import file as piper_file
from autopart.records.calibration import check_calibration, load_calibration
from autopart.records.cluster import cluster_of, load_cluster
from autopart.records.files import encode
from autopart.records.known_gpus import find_gpu
from autopart.records.plan import load_plan
from autopart.records.profile import load_profile
from autopart.records.run_result import load_run_result
from autopart.records.size import load_sizing
from tests.support.fuzz import seed_files
from tests.support.plan_kinds import plan_of_kind


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
    is_usage: bool = False
    """Whether the file stands for an option's value, so that a refusal is a usage error."""


def _piper(path: Path) -> list[Any]:
    return [piper_file.read(path), import_profile("piper", path)]


def _calibration(path: Path) -> list[Any]:
    found = load_calibration(path)
    check_calibration(found, find_gpu(found.gpu))
    return [found]


def _dnn(path: Path) -> list[Any]:
    return [dnn_file.read(path), import_profile("dnn-partitioning", path)]


def _layout(path: Path) -> list[Any]:
    """What each framework's reader makes of a layout; raises UsageError where none can read it."""
    text, graph = file_text(path), seed_files.profiles()[0].graph
    readers: list[Callable[[], Any]] = [
        lambda: units_of_layout(layout_text(text)),
        lambda: units_of_modules(text),
        lambda: units_of_parts(graph, text),
        lambda: units_of_partition(text),
        lambda: stages_of_device_map(graph, text),
    ]
    found: list[Any] = []
    for read in readers:
        with contextlib.suppress(UsageError):
            found.append(read())
    if not found:
        raise UsageError(f"{path}: no framework has such a layout")
    return found


SOLVE = "solve --time-limit 1 -o out.json"

FORMATS = {
    "profile": Format(
        28, "profile.json", lambda: [encode(one) for one in seed_files.profiles()],
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
            f"{SOLVE} --profile profile.json --gpus 4 --gpu h100-sxm --tensor auto --schedule zb-h1,1f1b",
            f"{SOLVE} --profile profile.json --gpus 4 --gpu h100-sxm --context auto --expert auto",
            f"{SOLVE} --profile profile.json --gpus 4 --gpu h100-sxm --expert 2 --expert-imbalance measured",
            f"{SOLVE} --profile profile.json --cluster dgx-h100 --gpus 4 --shard auto --json",
            "scale-profile profile.json --microbatch 6 -o out-scaled.json",
            "size --profile profile.json --tokens 1e6 --tokens-per-sample 1 --gpu h100-sxm=2 --most-gpus 4 "
            "--global-batch 8 --time-limit 1 -o out-size.json",
            "explain good-plan.json --profile profile.json --time-limit 1",
            "report good-plan.json --profile profile.json --time-limit 1 -o out.html",
        ),
    ),
    "plan": Format(
        36, "plan.json", lambda: [encode(one) for one in seed_files.plans()],
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
            "show plan.json --orders",
            "compare plan.json good-plan.json",
            "explain plan.json --profile good-profile.json --time-limit 1",
            "report plan.json -o out.html",
            "export plan.json --to automodel -o out-automodel",
            "export plan.json --to accelerate -o out-accelerate",
            "export plan.json --to vllm -o out-vllm",
        ),
    ),
    "cluster": Format(
        12, "cluster.json",
        lambda: [encode(one) for one in seed_files.clusters()],
        lambda path: [load_cluster(path)],
        (
            f"{SOLVE} --profile good-profile.json --cluster cluster.json",
            f"{SOLVE} --profile good-profile.json --cluster cluster.json --replicas per-stage --json",
            f"{SOLVE} --profile good-profile.json --cluster cluster.json --gpus 2 --schedule zb-h1",
            f"{SOLVE} --profile good-groups.json --cluster cluster.json --tensor auto --shard auto",
            f"{SOLVE} --profile good-groups.json --cluster cluster.json --context auto --expert auto",
        ),
    ),
    "piper": Format(
        7, "piper.json", lambda: [json.dumps(seed_files.piper_net(seed)).encode() for seed in range(3)],
        _piper,
        (
            "bottleneck piper piper.json",
            "bottleneck piper piper.json --gpus 3 --json",
            "import piper piper.json -o out-profile.json",
        ),
    ),
    "dnn-partitioning": Format(
        7, "dnn.json", lambda: [json.dumps(seed_files.dnn_graph(seed)).encode() for seed in range(3)],
        _dnn,
        (
            "bottleneck dnn-partitioning dnn.json --time-limit 1",
            "bottleneck dnn-partitioning dnn.json --no-contiguity --time-limit 1 --json",
            "import dnn-partitioning dnn.json -o out-profile.json",
        ),
    ),
    "pipedream": Format(
        6, "graph.txt", lambda: [seed_files.text_graph(seed) for seed in range(3)],
        lambda path: [import_profile("pipedream", path)],
        (
            "bottleneck pipedream graph.txt --gpus 4 --bandwidth 1GB/s --time-limit 1",
            "bottleneck pipedream graph.txt --gpus 4 --nodes 2 --bandwidth 9GB/s --bandwidth 1GB/s "
            "--time-limit 1 --json",
            "import pipedream graph.txt -o out-profile.json --json",
        ),
    ),
    "dapple": Format(
        2, "net-3-pbs-8.txt", lambda: [seed_files.text_graph(seed) for seed in range(3, 5)],
        lambda path: [import_profile("dapple", path)],
        ("import dapple net-3-pbs-8.txt -o out-profile.json",),
    ),
    "run result": Format(
        3, "run.json", lambda: [encode(one) for one in seed_files.runs()],
        lambda path: [load_run_result(path)],
        (
            "report good-plan.json --run run.json -o out.html",
            f"{SOLVE} --profile good-groups.json --gpus 2 --gpu h100-sxm --expert 2 --expert-imbalance run.json",
        ),
    ),
    "calibration": Format(
        3, "calibration.json", lambda: [encode(one) for one in seed_files.calibrations()],
        _calibration,
        ("profile zoo:mlp-tiny --device meta --gpu a100-sxm-80gb --dtype bfloat16 --calibrate calibration.json "
         "-o out-profile.json",),
    ),
    "sizing": Format(
        2, "size.json", lambda: [encode(one) for one in seed_files.sizings()],
        lambda path: [load_sizing(path)],
        ("report good-plan.json --size size.json -o out.html",),
    ),
    "steps": Format(1, "runs.csv", lambda: list(seed_files.STEPS), lambda path: [*read_runs(path)], ()),
    "layout": Format(
        3, "layout.txt", lambda: list(seed_files.LAYOUTS), _layout,
        tuple(
            f"import-plan {framework} --file layout.txt --profile gpt2-1.3b-h100-sxm-mb1 --gpus 4 --nodes 1 "
            "--time-limit 0.1 -o out.json"
            for framework in ("megatron", "torchtitan", "deepspeed", "vllm", "device-map")
        ),
        is_usage=True,
    ),
}  # fmt: skip
"""Each format by its name."""


@functools.cache
def good_files() -> dict[str, bytes]:
    """Valid files that stand beside a mutant, by name."""
    plan, profiles = plan_of_kind(seed_files.FIRST)
    return {
        "good-profile.json": encode(profiles[0]),
        "good-groups.json": encode(seed_files.in_groups()),
        "good-plan.json": encode(plan),
        "good-cluster.json": encode(cluster_of("h100-sxm", 4, 2)),
    }
