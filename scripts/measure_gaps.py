"""Measure the gaps between plans and their lower bounds, over profiles and numbers of GPUs.

    python scripts/measure_gaps.py profiles/*.json --gpu h100-sxm
    python scripts/measure_gaps.py --format pipedream DATA/pipedream/profiles/*/graph.txt --gpu v100-sxm-32gb
    python scripts/measure_gaps.py --format dapple DATA/dapple/*.txt --schedule auto --replicas 1 --gpus 4 8

Prints one JSON line for each profile and number of GPUs, then the share of closed gaps.
"""

import argparse
import json
import time
from pathlib import Path

import autopart
from autopart.errors import InfeasibleError

GPUS = (4, 8, 16, 32)
GPUS_PER_NODE = 8
CLOSED = 1e-9
"""Largest gap that counts as 0, for rounding."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument(
        "--format", default="autopart", help="autopart, pipedream, dapple, piper, ..."
    )
    parser.add_argument("--gpu", default="h100-sxm")
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS)
    parser.add_argument("--stages", type=int, default=None)
    parser.add_argument("--replicas", type=int, default=None)
    parser.add_argument("--microbatches", type=int, default=None)
    parser.add_argument(
        "--schedule",
        default=None,
        help="such as auto; the row also has the step under GPipe and 1F1B",
    )
    parser.add_argument("--time-limit", type=float, default=60.0)
    asked = parser.parse_args()
    rows = [row for path in asked.files for row in _rows(asked, path)]
    gaps = [row["gap"] for row in rows if row["gap"] is not None]
    closed = sum(gap <= CLOSED for gap in gaps)
    near = sum(gap <= 0.01 for gap in gaps)
    infeasible = sum("step_time" not in row for row in rows)
    print(
        f"{len(rows)} problems, {infeasible} infeasible; gap 0 on {closed} "
        f"({closed / max(1, len(gaps)):.0%}), at most 1 % on {near} ({near / max(1, len(gaps)):.0%})"
    )


def _solve(
    asked: argparse.Namespace,
    profile: autopart.Profile,
    cluster: autopart.Cluster,
    more: dict[str, str],
) -> autopart.Plan:
    return autopart.solve(
        profile,
        cluster,
        num_stages=asked.stages,
        num_replicas=asked.replicas,
        num_microbatches=asked.microbatches,
        time_limit=asked.time_limit,
        **more,
    )


def _rows(asked: argparse.Namespace, path: Path) -> list[dict[str, object]]:
    if asked.format == "autopart":
        profile = autopart.load_profile(path)
    else:
        profile = autopart.import_profile(asked.format, path)
    rows: list[dict[str, object]] = []
    for gpus in asked.gpus:
        cluster = autopart.cluster_of(asked.gpu, gpus, nodes=max(1, gpus // GPUS_PER_NODE))
        began = time.process_time()
        row: dict[str, object] = {
            "profile": str(path),
            "layers": len(profile.graph.layers),
            "gpus": gpus,
        }
        try:
            plain = _solve(asked, profile, cluster, {})
            plan = plain
            if asked.schedule:
                plan = _solve(asked, profile, cluster, {"schedule": asked.schedule})
                row["plain_step_time"] = plain.prediction.step_time
            row |= {
                "stages": len(plan.stages),
                "replicas": len(plan.stages[0].ranks),
                "schedule": plan.schedule,
                "step_time": plan.prediction.step_time,
                "lower_bound": plan.certificate.lower_bound,
                "gap": plan.certificate.gap,
                "simulated": plan.certificate.simulated,
            }
        except InfeasibleError:
            row |= {"gap": None}
        row["cpu_seconds"] = round(time.process_time() - began, 3)
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
