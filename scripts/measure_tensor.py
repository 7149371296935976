"""Plans with a tensor degree for large models, against tensor degree 8 with uniform layers.

Usage: .venv/bin/python scripts/measure_tensor.py FOLDER [--rows llama-70b:16 ...] [--time-limit 60]

Each row is a built-in model on so many H100 in nodes of 8, with ZeRO-1. Its profile is analytic: bfloat16, one sequence of
4,096 tokens per microbatch, tensor degrees 1, 2, 4 and 8. It lies in FOLDER and is made where it is missing. A step has 4
samples per GPU. The plan is the best over all degrees with `--recompute auto`. The other one is the best with degree 8 and
equally many layers per stage, where no layer, the cheap part of all layers, or every layer is recomputed.

Prints one JSON line per row. Seconds are of the processor.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import msgspec

import autopart
from autopart.cli.main import exit_code
from autopart.errors import AutopartError
from autopart.records.tensor_degree import degree_of

GPU, GPUS_PER_NODE, DEGREE = "h100-sxm", 8, 8
ROWS = ("llama-70b:8", "llama-70b:16", "llama-70b:64", "llama-405b:512", "llama-405b:1024")
ON_ONE_NODE = {"offload_optimizer": "auto"}
"""llama-70b does not fit on 8 GPUs whose optimizer state stays on the device."""


def main() -> None:
    """Print each row that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="MODEL:GPUS")
    parser.add_argument("--time-limit", type=float, default=60.0)
    asked = parser.parse_args()
    for row in asked.rows:
        model, _, gpus = row.partition(":")
        profile = profile_of(model, asked.folder)
        print(json.dumps(measured(profile, int(gpus), asked.time_limit)), flush=True)


def profile_of(model: str, folder: Path) -> autopart.Profile:
    """The model's profile with all tensor degrees."""
    path = folder / f"{model}-{GPU}-mb1-tensor.json"
    if not path.exists():
        line = (
            f"profile zoo:{model} --device meta --gpu {GPU} --dtype bfloat16 --microbatch-size 1 "
            f"--tensor 1,2,4,8 --sequence-parallel -o {path}"
        )
        if exit_code(line.split()) != 0:
            raise SystemExit(1)
    return autopart.load_profile(path)


def measured(profile: autopart.Profile, gpus: int, time_limit: float) -> dict[str, object]:
    """One row: the plan, its figures, and the uniform plan beside it."""
    cluster = autopart.cluster_of(GPU, gpus, nodes=max(1, gpus // GPUS_PER_NODE))
    options: dict[str, Any] = {"zero1": True, "time_limit": time_limit}
    options |= ON_ONE_NODE if gpus <= GPUS_PER_NODE else {}
    row: dict[str, object] = {"model": profile.source.model, "gpus": gpus}
    began = time.process_time()
    try:
        plan = autopart.solve(profile, cluster, tensor="auto", recompute="auto", **options)
    except AutopartError as error:
        return row | {"error": str(error)}
    row["seconds"] = round(time.process_time() - began, 1)
    began = time.process_time()
    checks = autopart.verify(plan, profile)
    row["verify_seconds"] = round(time.process_time() - began, 1)
    row["verified"] = all(check.passed for check in checks)
    row |= {"step": plan.prediction.step_time, "gap": plan.certificate.gap} | shape(plan)
    steps: dict[str, float | str] = {}
    for recompute in ("never", "selective", "always"):
        try:
            uniform = autopart.solve(
                profile, cluster, tensor=DEGREE, solver="uniform", recompute=recompute, **options
            )
            steps[recompute] = uniform.prediction.step_time
        except AutopartError as error:
            steps[recompute] = str(error).partition(":")[0]
    found = [step for step in steps.values() if isinstance(step, float)]
    row["uniform"] = steps
    row["faster"] = min(found) / plan.prediction.step_time - 1 if found else None
    return row


def shape(plan: autopart.Plan) -> dict[str, object]:
    """The plan's degree, stages, replicas, schedule and policies."""
    return {
        "degree": degree_of(plan.tensor),
        "tensor": msgspec.to_builtins(plan.tensor) if degree_of(plan.tensor) > 1 else None,
        "stages": len(plan.stages),
        "replicas": len(plan.stages[0].ranks),
        "schedule": plan.schedule,
        "recomputed": sum(len(stage.recompute) for stage in plan.stages),
        "selective": sum(len(stage.selective) for stage in plan.stages),
        "on_host": sum(stage.optimizer_on_host for stage in plan.stages),
    }


if __name__ == "__main__":
    main()
