"""Compare the predicted peak bytes of each rank with the bytes that it holds when it runs alone.

    python scripts/measure_bytes.py
    python scripts/measure_bytes.py zoo:gpt2-tiny zoo:encdec-tiny --plans zbv "four stages on two ranks"
    python scripts/measure_bytes.py zoo:gpt2-tiny zoo:llama-tiny --plans zero2 zero3 --microbatches 16
    python scripts/measure_bytes.py --tables rows.jsonl

Each model is cut into stages with equal numbers of layers, so the cuts depend on no measured time. Each rank
then runs one step alone (`autopart validate --one-device`), and its tensor bytes are counted operation by
operation. Neither the machine nor its load changes a figure.

One JSON line per plan goes to standard output: for each rank the predicted and the measured bytes, and how many
of the predicted ones are gradients and stash. `repeated` has the bytes of tied parameters that several stages on
the rank have: predictions counted them once per stage until 2026-11-30. A table of predicted / measured - 1 follows, per rank in percent; the
bar is 0 to 5. `--tables` prints the table for earlier lines. The exit code is 1 where a rank needs more bytes
than predicted.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import autopart
from autopart.cost.memory import rank_memory
from autopart.records.plan import schedule_of, stage_ranks
from autopart.records.prediction import REPEATED

MODELS = (
    "zoo:gpt2-tiny",
    "zoo:llama-tiny",
    "zoo:resnet-tiny",
    "zoo:unet-tiny",
    "zoo:encdec-tiny",
    "zoo:moe-tiny",
    "zoo:mlp-tiny",
)
INTERLEAVED = {"schedule": "interleaved-1f1b", "num_stages": 4, "stages_per_rank": 2}
IN_A_V = {"schedule": "zbv", "num_stages": 4}
SHARED = {"num_stages": 2, "shard_degree": 2}
PLANS: Mapping[str, Mapping[str, Any]] = {
    "1f1b": {"schedule": "1f1b", "num_stages": 2},
    "gpipe": {"schedule": "gpipe", "num_stages": 2},
    "recomputed": {"schedule": "1f1b", "num_stages": 2, "recompute": "always"},
    "four ranks": {"schedule": "1f1b", "num_stages": 4},
    "four stages on two ranks": INTERLEAVED,
    "zb-h1": {"schedule": "zb-h1", "num_stages": 2},
    "zbv": IN_A_V,
    "zbv, recomputed": {**IN_A_V, "recompute": "always"},
    "zero2": {**SHARED, "schedule": "1f1b", "shard": "zero2"},
    "zero2, one sum": {**SHARED, "schedule": "1f1b", "shard": "zero2", "sync": "fsdp2"},
    "zero2, zb-h1": {**SHARED, "schedule": "zb-h1", "shard": "zero2"},
    "zero3": {**SHARED, "schedule": "1f1b", "shard": "zero3"},
    "zero3, recomputed": {**SHARED, "schedule": "1f1b", "shard": "zero3", "recompute": "always"},
    "zero3, zb-h1": {**SHARED, "schedule": "zb-h1", "shard": "zero3"},
}
"""Demands for each plan."""

Row = dict[str, Any]


def main() -> int:
    asked = _options()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows: list[Row] = []
    if asked.tables:
        rows = [json.loads(line) for path in asked.tables for line in path.read_text().splitlines()]
    else:
        for row in _measured(asked):
            print(json.dumps(row), flush=True)
            rows.append(row)
    Console(width=120, stderr=not asked.tables).print(_table(rows))
    return any(error < 0 for row in rows for error in _errors(row))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--plans", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--microbatch-size", type=int, default=4)
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument(
        "--tables", type=Path, nargs="+", help="files with lines from earlier calls"
    )
    return parser.parse_args()


def _measured(asked: argparse.Namespace) -> Iterator[Row]:
    torch.set_num_threads(1)
    for model in asked.models:
        profile = autopart.profile_model(
            model, microbatch_size=asked.microbatch_size, repeats=1, warmup=0
        )
        for name in asked.plans:
            has_four = name == "four ranks" or "shard" in PLANS[name]
            cluster = autopart.cluster_of("cpu", gpus=4 if has_four else 2)
            try:
                plan = autopart.solve(
                    profile,
                    cluster,
                    num_microbatches=asked.microbatches,
                    num_replicas=1,
                    solver="uniform",
                    **PLANS[name],
                )
            except autopart.InfeasibleError as error:
                sys.stderr.write(f"{model}, {name}: {error}\n")
                continue
            yield _row(model, name, plan)


def _row(model: str, name: str, plan: autopart.Plan) -> Row:
    validation = autopart.validate_plan(plan, model, steps=1, one_device=True, device="cpu")
    assert validation is not None
    uses = rank_memory(stage_ranks(plan), schedule_of(plan), plan.prediction.stages)
    ranks = validation.fidelity.ranks
    return {
        "model": model,
        "plan": name,
        "layers": [len(stage.layers) for stage in plan.stages],
        "predicted": [rank.predicted_bytes for rank in ranks],
        "measured": [rank.measured_bytes for rank in ranks],
        "gradients": [uses[rank.rank].gradients for rank in ranks],
        "stash": [uses[rank.rank].stash for rank in ranks],
        "repeated": [_repeated(plan, rank.stages) for rank in ranks],
    }


def _repeated(plan: autopart.Plan, stages: Sequence[int]) -> int:
    """Device bytes of tied parameters in the rank's stages beyond the first with each."""
    found = [plan.prediction.stages[s].repeated for s in stages]
    return sum(getattr(own, kind) for own in found if own for kind in REPEATED)


def _errors(row: Row) -> list[float]:
    pairs = zip(row["predicted"], row["measured"], strict=True)
    return [predicted / measured - 1.0 for predicted, measured in pairs]


def _table(rows: Sequence[Row]) -> Table:
    plans = list(dict.fromkeys(row["plan"] for row in rows))
    table = Table(
        "model", *plans, title="predicted over measured peak bytes - 1, per rank in percent"
    )
    for model in dict.fromkeys(row["model"] for row in rows):
        own = {row["plan"]: row for row in rows if row["model"] == model}
        cells = [
            " ".join(f"{100 * error:+.1f}" for error in _errors(own[plan])) if plan in own else "–"
            for plan in plans
        ]
        table.add_row(model, *cells)
    return table


if __name__ == "__main__":
    sys.exit(main())
