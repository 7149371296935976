"""What a tensor degree per stage gains over one degree for the whole plan.

Usage: .venv/bin/python scripts/measure_stage_degrees.py [--rows gemma-7b:16:8 ...] [--time-limit 120]

A row is a model, a number of H100, and the microbatches per step. The profiles follow from the formulas of
scripts/measure_tensor.py: bfloat16, one sequence of 4,096 tokens per microbatch, tensor degrees 1, 2, 4 and 8 in nodes of 8 GPUs.
`--zero1 --sync megatron --recompute auto`, without sequence parallelism, which the formulas always favour a little.
gemma-7b has a heavy head: its 256,000 words take 2.9 times the work of a block. llama-8b-1m is llama-8b with 1,024,000 words:
its head takes the work of 19 blocks.

With --random it solves so many random problems of the tests instead, with layers and variants that are all unlike.

Prints one JSON line per row. Seconds are of the processor. The time limit is for each solve, in seconds of the wall.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from measure_recompute import MODELS, Shape
from measure_tensor import GPU, GPUS_PER_NODE, formula_profile

import autopart
from autopart.errors import InfeasibleError
from autopart.records.plan_degrees import degrees_name
from autopart.records.rank_group import StageDegrees

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.support.witness.cases import draw_case, keywords

SHAPES = MODELS | {
    "gemma-7b": Shape(28, 3072, 24_576, 4096, 256_000, gated=True),
    "llama-8b-1m": Shape(32, 4096, 14_336, 1024, 1_024_000, gated=True),
}
ROWS = (
    "llama-8b:16:64",
    "gemma-7b:16:8",
    "gemma-7b:16:64",
    "llama-8b-1m:8:32",
    "llama-8b-1m:16:32",
    "llama-70b:16:64",
    "llama-70b:64:256",
)


def main() -> None:
    """Print each row that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="MODEL:GPUS:MICROBATCHES")
    parser.add_argument("--time-limit", type=float, default=120.0)
    parser.add_argument("--random", type=int, default=0, metavar="COUNT")
    asked = parser.parse_args()
    if asked.random:
        print(json.dumps(random_gains(asked.random)))
        return
    for row in asked.rows:
        model, gpus, count = row.split(":")
        profile = formula_profile(SHAPES[model], model)
        print(json.dumps(measured(profile, int(gpus), int(count), asked.time_limit)), flush=True)


def random_gains(count: int) -> dict[str, object]:
    """The gains on the first random problems of the tests, whose layers and variants are all unlike."""
    gains: list[float] = []
    for seed in range(count):
        case = draw_case("tensor degrees per stage", seed)
        try:
            steps = [
                autopart.solve(
                    case.profiles,
                    case.problems[0].cluster,
                    time_limit=20.0,
                    **keywords(case.problems[0], tensor=word),
                ).prediction.step_time
                for word in ("auto", "per-stage")
            ]
        except InfeasibleError:
            continue
        gains.append(steps[0] / steps[1] - 1)
    better = sorted(gain for gain in gains if gain > 1e-9)
    return {
        "problems": len(gains),
        "several degrees faster": len(better),
        "median gain of these": better[len(better) // 2] if better else None,
        "largest gain": better[-1] if better else None,
    }


def measured(
    profile: autopart.Profile, gpus: int, count: int, time_limit: float
) -> dict[str, object]:
    """One row: the plans with one degree and with a degree per stage, and their figures."""
    cluster = autopart.cluster_of(GPU, gpus, nodes=max(1, gpus // GPUS_PER_NODE))
    row: dict[str, Any] = {"model": profile.source.model, "gpus": gpus, "microbatches": count}
    for word in ("auto", "per-stage"):
        began = time.process_time()
        plan = autopart.solve(
            profile,
            cluster,
            tensor=word,
            sequence_parallel="off",
            num_microbatches=count,
            zero1=True,
            sync="megatron",
            recompute="auto",
            time_limit=time_limit,
        )
        solved = time.process_time() - began
        began = time.process_time()
        checks = autopart.verify(plan, profile)
        own = [size for size in plan.sizes if isinstance(size.per_stage, StageDegrees)]
        row[word] = {
            "step": plan.prediction.step_time,
            "gap": plan.certificate.gap,
            "degrees": degrees_name(plan),
            "layers": [len(stage.layers) for stage in plan.stages],
            "replicas": len(plan.stages[0].ranks),
            "bound_of_several": own[0].lower_bound if own else None,
            "simulated": plan.certificate.simulated,
            "seconds": round(solved, 1),
            "verify_seconds": round(time.process_time() - began, 1),
            "verified": all(check.passed for check in checks),
        }
    row["gain"] = row["auto"]["step"] / row["per-stage"]["step"] - 1
    return row


if __name__ == "__main__":
    main()
