"""The quickstart's comparison again and again: predicted and measured steps, raw and at the run's pace.

    python scripts/measure_pace.py --rounds 5

Each round profiles `zoo:gpt2-tiny` with one thread, solves it for two ranks, and runs the plan here for five
steps. One JSON line per round goes to standard output, then a summary with the bar of 15 %.
"""

import argparse
import json
import os
import sys

import torch

import autopart

BAR = 0.15
"""Largest difference, as a share, that the quickstart's comparison may have."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    rows = [_round() for _ in range(asked.rounds)]
    for name in ("error", "error_at_pace"):
        within = sum(abs(row[name]) <= BAR for row in rows)
        worst = max(abs(row[name]) for row in rows)
        sys.stdout.write(
            f"{name}: {within} of {len(rows)} within {BAR:.0%}, {worst:.1%} at worst\n"
        )


def _round() -> dict[str, float]:
    profile = autopart.profile_model("zoo:gpt2-tiny", microbatch_size=4)
    cluster = autopart.cluster_of("cpu", gpus=2)
    plan = autopart.solve(profile, cluster, num_stages=2, global_batch=32)
    run = autopart.run_plan(plan, "zoo:gpt2-tiny", steps=5)
    assert run is not None and run.pace is not None
    assert run.pace.slowdown is not None and run.pace.error is not None
    row = {
        "predicted": run.predicted_step_time,
        "measured": run.step_time,
        "error": run.error,
        "slowdown": run.pace.slowdown,
        "core_share": run.pace.core_share,
        "error_at_pace": run.pace.error,
    }
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()
    return row


if __name__ == "__main__":
    main()
