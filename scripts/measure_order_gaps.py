"""Measure the gaps that `--schedule auto` leaves over every order.

    python scripts/measure_order_gaps.py --data DATA
    python scripts/measure_order_gaps.py --data DATA --only llama --time-limit 60

The rows are the profiles of docs/benchmarks.md with one pipeline and 16 microbatches, and llama-8b on
8 to 512 GPUs. Prints one JSON line for each row, then the median and the largest gap. DATA holds the
public profiles; rows without a file are left out.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import autopart

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
    asked = parser.parse_args()
    gaps: list[float] = []
    for name, profile, gpu, gpus, more in _rows(asked.data, asked.only):
        row = _solved(profile, gpu, gpus, more | {"time_limit": asked.time_limit})
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


if __name__ == "__main__":
    main()
