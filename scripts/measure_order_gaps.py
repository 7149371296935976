"""Measure the gaps that `--schedule auto` leaves over every order.

    python scripts/measure_order_gaps.py --data DATA
    python scripts/measure_order_gaps.py --data DATA --only llama --time-limit 60
    python scripts/measure_order_gaps.py --data DATA --steps rows.jsonl

The rows are the profiles of docs/benchmarks.md with one pipeline and 16 microbatches, and llama-8b on
8 to 512 GPUs. Prints one JSON line for each row, then the median and the largest gap. DATA holds the
public profiles; rows without a file are left out. `--steps` takes the steps of an earlier run and
finds their lower bounds again, without a search for plans and without a time limit.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import autopart
from autopart.records.cluster import num_gpus
from autopart.records.microbatch_sizes import samples
from autopart.search.branch_and_bound import BranchAndBound
from autopart.search.demands import make_problem
from autopart.search.options import SolveOptions

ROOT = Path(__file__).resolve().parent.parent
LLAMA = ROOT / "profiles" / "llama-8b-h100-sxm-mb2.json"
DAPPLE = ("bert-24-pbs-6", "gnmt-16-pbs-64", "vgg-19-pbs-32")
PIPEDREAM = ("vgg16", "gnmt", "resnet50")
GPUS_PER_NODE = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--only", default="", help="rows whose name contains this text")
    parser.add_argument("--time-limit", type=float, default=60.0)
    parser.add_argument("--steps", type=Path, help="JSON lines of an earlier run")
    asked = parser.parse_args()
    lines = asked.steps.read_text().splitlines() if asked.steps else []
    known = [json.loads(line) for line in lines if line.startswith("{")]
    steps: dict[str, float] = {row["row"]: row["step"] for row in known}
    gaps: list[float] = []
    for name, profile, gpu, gpus, more in _rows(asked.data, asked.only):
        step = steps.get(f"{name} {gpus}")
        if asked.steps and step is None:
            continue
        options = more | {"time_limit": asked.time_limit}
        row = (
            _solved(profile, gpu, gpus, options)
            if step is None
            else _bounded(profile, gpu, gpus, options, step)
        )
        print(json.dumps({"row": f"{name} {gpus}"} | row), flush=True)
        gaps += [row["gap"]] if row["gap"] is not None else []
    if gaps:
        print(f"{len(gaps)} gaps: median {statistics.median(gaps):.1%}, largest {max(gaps):.1%}")


def _rows(
    data: Path, only: str
) -> Iterator[tuple[str, autopart.Profile, str, int, dict[str, Any]]]:
    """Name, profile, GPU, count and further options of each row."""
    single = {"num_replicas": 1, "num_microbatches": 16}
    places = [
        *((name, "dapple", data / "dapple/profiling_results" / f"{name}.txt") for name in DAPPLE),
        *(
            (name, "pipedream", data / "pipedream/profiles" / name / "graph.txt")
            for name in PIPEDREAM
        ),
    ]
    for name, kind, path in places:
        if only in name and path.exists():
            profile = autopart.import_profile(kind, path)
            for gpus in (4, 8):
                yield name, profile, "v100-sxm-32gb", gpus, single
    if only in "llama-8b":
        for gpus in (8, 16, 64, 512):
            yield "llama-8b", autopart.load_profile(LLAMA), "h100-sxm", gpus, {}


def _solved(
    profile: autopart.Profile, gpu: str, gpus: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Step, bound and gap of one row."""
    cluster = autopart.cluster_of(gpu, gpus, nodes=max(1, gpus // GPUS_PER_NODE))
    began, spent = time.perf_counter(), time.process_time()
    plan = autopart.solve(profile, cluster, schedule="auto", **options)
    return {
        "stages": len(plan.stages),
        "ranks": len({rank for stage in plan.stages for rank in stage.ranks}),
        "replicas": len(plan.stages[0].ranks),
        "microbatches": plan.num_microbatches,
        "schedule": plan.schedule,
        "step": plan.prediction.step_time,
        "bound": plan.certificate.lower_bound,
        "gap": plan.certificate.gap,
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - spent, 1),
    }


def _bounded(
    profile: autopart.Profile, gpu: str, gpus: int, options: dict[str, Any], step: float
) -> dict[str, Any]:
    """The lower bound of a row whose step is known."""
    cluster = autopart.cluster_of(gpu, gpus, nodes=max(1, gpus // GPUS_PER_NODE))
    spent, asked = time.process_time(), SolveOptions(schedule="auto", **options)
    size = profile.microbatch_size
    batch = samples([size], num_gpus(cluster), asked.num_microbatches, asked.global_batch)
    problem = make_problem(profile, cluster, batch // size, asked)
    search = BranchAndBound(problem, "auto", step)
    # The last phase raises the lower bound.
    search.phases[-1].run(math.inf)
    bound = search.outcome().lower_bound
    return {
        "step": step,
        "bound": bound,
        "gap": step / bound - 1,
        "cpu_seconds": round(time.process_time() - spent, 1),
    }


if __name__ == "__main__":
    main()
