"""Measure whether searches keep their time limit, on models and options that once did not.

    python scripts/measure_limits.py --time-limit 5

Prints one JSON line for each case: seconds behind the time limit at which the answer came, by the
clock on the wall and as processor seconds in all, the plan's step and gap, and the processor
seconds of `verify`. Without a plan the line has the planner's message.

The models are those of scripts/measure_recompute.py with 8,192 tokens, and profiles/llama-8b.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import measure_recompute

import autopart

LLAMA_8B = Path(__file__).parent.parent / "profiles" / "llama-8b-h100-sxm-mb2.json"
GPU, GPUS_PER_NODE, MICROBATCHES_PER_GPU, TOKENS = "h100-sxm", 8, 4, 8192

CASES: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("llama-8b", 64, {"schedule": "auto"}),
    ("llama-8b", 1024, {"schedule": "auto"}),
    ("llama-8b", 64, {"schedule": "auto", "microbatch_sizes": (1, 2, 4)}),
    ("llama-8b", 512, {"replicas_per_stage": True}),
    ("llama-8b", 1024, {"replicas_per_stage": True}),
    ("llama-8b", 64, {"solver": "ilp"}),
    ("llama-70b", 64, {"schedule": "auto"}),
    ("llama-70b", 64, {"schedule": "auto", "recompute": "auto"}),
    ("gpt-175b", 512, {"recompute": "auto", "offload": "auto"}),
    ("gpt-175b", 1024, {"recompute": "auto"}),
    ("gpt-175b", 512, {"recompute": "auto", "objective": "bottleneck"}),
    ("gpt-175b", 64, {"recompute": "auto", "replicas_per_stage": True}),
    ("gpt-175b", 1024, {"schedule": "auto"}),
)
"""Model, GPUs and options."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--time-limit", type=float, default=5.0)
    limit: float = parser.parse_args().time_limit
    for model, gpus, options in CASES:
        row: dict[str, Any] = {"model": model, "gpus": gpus, **options}
        print(json.dumps(row | measure(model, gpus, options, limit)), flush=True)


def measure(model: str, gpus: int, options: dict[str, Any], limit: float) -> dict[str, Any]:
    """Seconds behind the time limit, and the answer."""
    given = profile_of(model)
    cluster = autopart.cluster_of(GPU, gpus, nodes=gpus // GPUS_PER_NODE)
    samples = MICROBATCHES_PER_GPU * gpus * given.microbatch_size
    began, used = time.perf_counter(), time.process_time()
    plan, answer = None, {}
    try:
        plan = autopart.solve(given, cluster, global_batch=samples, time_limit=limit, **options)
        answer = {"step": plan.prediction.step_time, "gap": plan.certificate.gap}
    except autopart.AutopartError as error:
        answer = {"message": str(error)}
    answer["late"] = round(time.perf_counter() - began - limit, 1)
    answer["processor"] = round(time.process_time() - used, 1)
    if plan is not None:
        used = time.process_time()
        answer["verified"] = all(check.passed for check in autopart.verify(plan, given))
        answer["verify_processor"] = round(time.process_time() - used, 1)
    return answer


def profile_of(model: str) -> autopart.Profile:
    """The profile in the repository, or an analytic one."""
    if model == "llama-8b":
        return autopart.load_profile(LLAMA_8B)
    return measure_recompute.analytic_profile(measure_recompute.MODELS[model], model, TOKENS)


if __name__ == "__main__":
    main()
