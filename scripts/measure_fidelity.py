"""Compare predicted with measured steps of built-in models, for several plans on two ranks here.

    python scripts/measure_fidelity.py --cluster cluster.json
    python scripts/measure_fidelity.py zoo:gpt2-tiny zoo:unet-tiny --plans balanced deep --steps 20
    python scripts/measure_fidelity.py --one-device --steps 3
    python scripts/measure_fidelity.py --groups --cluster cluster.json
    python scripts/measure_fidelity.py --rows rows.jsonl

Each model is profiled with one thread, and solved for two ranks in each of PLANS. Each plan runs
with one thread per rank (`autopart validate --local`). `cluster.json` is the file that
`autopart probe` writes for this machine.

Profile and run sample the machine's pace. If it differs by more than 5 %, the run is repeated, up to
three times, and the nearest pace counts. The table has the pace in its own column, and beside each
error the error at equal pace.

One JSON line per plan goes to standard output as soon as the plan is done. A table follows. It has
the median and the worst error of the step, and the bytes at the peak. It also checks the order: two
plans for one model that are predicted more than 10 % apart should come in that order.

`--groups` runs both ranks as one group, with tensor, context and expert degree 2, zero2 and zero3. A model that cannot be
divided so is left out. `--rows` prints the table for earlier lines. For a plan with several lines it takes the medians of
the predicted and of the measured seconds. With `--one-device` each rank runs alone in this process.
No step is timed then, only core time per action, and bytes. Other processes do not change these.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from rich.console import Console
from rich.table import Table

import autopart
from autopart.units import format_time

MODELS = (
    "zoo:gpt2-tiny",
    "zoo:llama-tiny",
    "zoo:resnet-tiny",
    "zoo:unet-tiny",
    "zoo:encdec-tiny",
    "zoo:moe-tiny",
    "zoo:mlp-tiny",
)
PLANS: Mapping[str, Mapping[str, Any]] = {
    "balanced": {"schedule": "1f1b", "num_stages": 2},
    "gpipe": {"schedule": "gpipe", "num_stages": 2},
    "unbalanced": {"schedule": "1f1b", "num_stages": 2},
    "recompute": {"schedule": "1f1b", "num_stages": 2, "recompute": "always"},
    "deep": {"schedule": "interleaved-1f1b", "num_stages": 4, "stages_per_rank": 2},
    "zero bubble": {"schedule": "zb-h1", "num_stages": 2},
    "replicas": {"schedule": "1f1b", "num_stages": 1, "num_replicas": 2},
    "tensor": {"schedule": "1f1b", "num_stages": 1, "tensor": 2},
    "context": {"schedule": "1f1b", "num_stages": 1, "context": "2"},
    "expert": {"schedule": "1f1b", "num_stages": 1, "expert": "2"},
    "zero2": {"schedule": "1f1b", "num_stages": 1, "shard": "zero2", "shard_degree": 2},
    "zero3": {"schedule": "1f1b", "num_stages": 1, "shard": "zero3", "shard_degree": 2},
}
"""Demands for each plan. `unbalanced` also pins layers after the first quarter on the last stage."""
DEGREES = ("tensor", "context", "expert")
"""The plans whose profile needs a variant of the same name."""
GROUPS = (*DEGREES, "zero2", "zero3")
USUAL = tuple(name for name in PLANS if name not in GROUPS)
GROUP_MODELS = ("zoo:gpt2-tiny", "zoo:llama-tiny", "zoo:moe-tiny")

DIFFERENT = 0.10
"""Steps of one model predicted further apart than this share must come in that order."""
DRIFT = 0.05
"""Largest share by which the machine's pace in a run may differ from its pace in the profile."""
TRIES = 3
"""Times that a plan is run, at most, to find the profile's pace."""
PAUSE = 10.0
"""Seconds before a run is repeated."""

Row = dict[str, Any]


def main() -> None:
    asked = _options()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if asked.rows:
        lines = [line for path in asked.rows for line in path.read_text().splitlines()]
        rows = _once_each([json.loads(line) for line in lines])
    else:
        rows = list(_measured(asked))
    timed = [row for row in rows if row["measured"] is not None]
    lines = [*(_steps(timed) if timed else ()), _actions(rows), _bytes(rows)]
    Console(width=120, stderr=not asked.rows).print(_table(rows), *lines, sep="\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="*")
    parser.add_argument("--plans", nargs="+", choices=list(PLANS))
    parser.add_argument("--groups", action="store_true", help="plans whose ranks are one group")
    parser.add_argument("--cluster", type=Path, help="file from 'autopart probe'")
    parser.add_argument("--microbatch-size", type=int, default=4)
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=10, help="rounds in the profile")
    parser.add_argument("--one-device", action="store_true")
    parser.add_argument("--rows", type=Path, nargs="+", help="files with lines from earlier calls")
    return parser.parse_args()


def _measured(asked: argparse.Namespace):
    cluster = (
        autopart.load_cluster(asked.cluster)
        if asked.cluster
        else autopart.cluster_of("cpu", gpus=2)
    )
    models = asked.models or (GROUP_MODELS if asked.groups else MODELS)
    for model in models:
        profiles: dict[str, autopart.Profile] = {}
        for name in asked.plans or (GROUPS if asked.groups else USUAL):
            degree = name if name in DEGREES else ""
            try:
                if degree not in profiles:
                    profiles[degree] = _profile(model, asked, degree)
                plan = _plan(profiles[degree], cluster, name, asked.microbatches)
                row = _at_the_same_pace(model, name, plan, asked)
            except autopart.AutopartError as error:
                sys.stderr.write(f"{model}, {name}: {error}\n")
                continue
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
            yield row


def _once_each(rows: list[Row]) -> list[Row]:
    """One row for each model and plan: the medians over several calls."""
    alike: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        alike.setdefault((row["model"], row["plan"]), []).append(row)
    return [own[0] if len(own) == 1 else _medians(own) for own in alike.values()]


def _medians(rows: list[Row]) -> Row:
    found = dict(rows[-1])
    for name in ("predicted", "measured", "spread", "drift", "error_at_pace"):
        found[name] = statistics.median(row[name] for row in rows)
    found["error"] = found["predicted"] / found["measured"] - 1.0
    return found


def _profile(model: str, asked: argparse.Namespace, degree: str) -> autopart.Profile:
    torch.set_num_threads(1)
    degrees: dict[str, Any] = {degree: (2,)} if degree else {}
    return autopart.profile_model(
        model, microbatch_size=asked.microbatch_size, repeats=asked.repeats, **degrees
    )


def _at_the_same_pace(model: str, name: str, plan: autopart.Plan, asked: argparse.Namespace) -> Row:
    """The run whose pace is nearest to the profile's, out of at most `TRIES` runs."""
    rows: list[Row] = []
    for number in range(1 if asked.one_device else TRIES):
        if number:
            time.sleep(PAUSE)
        rows.append(_row(model, name, plan, asked))
        if abs(rows[-1]["drift"]) <= DRIFT:
            break
    return min(rows, key=lambda row: abs(row["drift"])) | {"tries": len(rows)}


def _plan(
    profile: autopart.Profile, cluster: autopart.Cluster, name: str, microbatches: int
) -> autopart.Plan:
    pins = {}
    if name == "unbalanced":
        # The first layer past a quarter of the forward time begins the last stage.
        layers = profile.graph.layers
        total, so_far = sum(la.forward_time for la in layers), 0.0
        for layer in layers:
            so_far += layer.forward_time
            if so_far > total / 4 and layer is not layers[0]:
                pins = {layer.name: 1}
                break
    asked = {"num_replicas": 1, **PLANS[name]}
    return autopart.solve(profile, cluster, num_microbatches=microbatches, pins=pins, **asked)


def _row(model: str, name: str, plan: autopart.Plan, asked: argparse.Namespace) -> Row:
    validation = autopart.validate_plan(
        plan, model, steps=asked.steps, one_device=asked.one_device, device="cpu"
    )
    assert validation is not None
    found = validation.fidelity
    assert found.pace is not None and found.pace.slowdown is not None
    return {
        "model": model,
        "plan": name,
        "layers": [len(stage.layers) for stage in plan.stages],
        "predicted": found.predicted_step_time,
        "measured": found.step_time,
        "spread": found.step_spread,
        "error": found.error,
        "drift": found.pace.slowdown - 1.0,
        "core_share": found.pace.core_share,
        "error_at_pace": found.pace.error,
        "causes": {one.cause: one.seconds for one in found.causes},
        "core_errors": [
            one.predicted / one.core - 1 for one in found.actions if one.core is not None
        ],
        "byte_errors": [rank.error for rank in found.ranks],
        "notes": list(found.notes),
        "fidelity": msgspec.to_builtins(found),
    }


def _table(rows: list[Row]) -> Table:
    heads = (
        "predicted",
        "measured",
        "spread",
        "off",
        "pace",
        "off at equal pace",
        "actions off, on the core",
        "bytes off",
    )
    table = Table("model", "plan", "layers", *heads)
    for row in rows:
        table.add_row(
            row["model"],
            row["plan"],
            "+".join(map(str, row["layers"])),
            format_time(row["predicted"]),
            *(
                ("–", "–", "–", f"{row['drift']:+.1%}", "–")
                if row["measured"] is None
                else (
                    format_time(row["measured"]),
                    format_time(row["spread"]),
                    f"{row['error']:+.1%}",
                    f"{row['drift']:+.1%}",
                    f"{row['error_at_pace']:+.1%}",
                )
            ),
            " ".join(f"{error:+.1%}" for error in row["core_errors"]),
            " ".join(f"{error:+.1%}" for error in row["byte_errors"]),
        )
    return table


def _steps(rows: list[Row]) -> list[str]:
    errors = sorted(abs(row["error"]) for row in rows)
    paced = sorted(abs(row["error_at_pace"]) for row in rows)
    wrong, pairs = _order(rows)
    drifts = sorted(abs(row["drift"]) for row in rows)
    unchanged = sum(drift <= DRIFT for drift in drifts)
    return [
        f"the machine's pace differed from the profile's by {statistics.median(drifts):.1%} in the median, "
        f"{drifts[-1]:.1%} at worst, in {unchanged} of {len(rows)} plans by at most {DRIFT:.0%}",
        f"{len(rows)} plans: the step is off by {statistics.median(errors):.1%} in the median, "
        f"{errors[-1]:.1%} at worst; at equal pace by {statistics.median(paced):.1%} and {paced[-1]:.1%}",
        f"order: {pairs - len(wrong)} of {pairs} pairs of one model that are predicted more than "
        f"{DIFFERENT:.0%} apart come in that order{''.join(wrong)}",
    ]


def _actions(rows: list[Row]) -> str:
    errors = sorted(error for row in rows for error in row["core_errors"])
    if not errors:
        return "actions: no core time was counted"
    sizes = sorted(map(abs, errors))
    return (
        f"actions, on the core: off by {statistics.median(sizes):.1%} in the median, from "
        f"{errors[0]:+.1%} to {errors[-1]:+.1%}, {statistics.median(errors):+.1%} with their sign"
    )


def _bytes(rows: list[Row]) -> str:
    errors = [error for row in rows for error in row["byte_errors"]]
    return (
        f"bytes at the peak: the prediction is off by {min(errors):+.2%} to {max(errors):+.2%} "
        "of the measured peak"
    )


def _order(rows: list[Row]) -> tuple[list[str], int]:
    """A note for each pair in the wrong order, and the number of pairs compared."""
    wrong: list[str] = []
    pairs = 0
    for one, other in itertools.combinations(rows, 2):
        faster, slower = sorted((one, other), key=lambda row: row["predicted"])
        if one["model"] != other["model"]:
            continue
        if slower["predicted"] <= (1 + DIFFERENT) * faster["predicted"]:
            continue
        pairs += 1
        if faster["measured"] >= slower["measured"]:
            wrong.append(f"; not {one['model']}: {faster['plan']} before {slower['plan']}")
    return wrong, pairs


if __name__ == "__main__":
    main()
