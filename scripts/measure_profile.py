"""Compare the sum over a model's layers with the whole model, for the example models.

    python scripts/measure_profile.py
    python scripts/measure_profile.py tests/support/models/hf_gpt2.py zoo:gpt2-124m --microbatch-size 1 --runs 3

Profiles each model `--runs` times. Prints one row per model with medians over the runs, and the
range of the time error. `--json` prints one JSON line per model, with every run.
"""

import argparse
import json
import statistics
import sys

import torch
from rich.console import Console
from rich.table import Table

import autopart
from autopart.records.profile import Profile, stash_error, time_error
from autopart.units import format_bytes, format_time
from autopart.zoo.catalogue import zoo_names

TINY = tuple(f"zoo:{name}" for name in zoo_names() if name.endswith("-tiny"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=TINY)
    parser.add_argument("--microbatch-size", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--granularity", default="block", choices=("block", "module"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = [_row(model, asked) for model in asked.models]
    if not asked.json:
        Console(width=120).print(_table(rows))


def _row(model: str, asked: argparse.Namespace) -> dict[str, object]:
    profiles = [
        autopart.profile_model(
            model,
            microbatch_size=asked.microbatch_size,
            dtype=asked.dtype,
            device=asked.device,
            repeats=asked.repeats,
            granularity=asked.granularity,
        )
        for _ in range(asked.runs)
    ]
    wholes = [profile.whole for profile in profiles if profile.whole is not None]
    row: dict[str, object] = {
        "model": model,
        "microbatch_size": asked.microbatch_size,
        "layers": len(profiles[0].graph.layers),
        "step_time": statistics.median(w.forward_time + w.backward_time for w in wholes),
        "forward_error": statistics.median(
            w.layers_forward_time / w.forward_time - 1 for w in wholes
        ),
        "backward_error": statistics.median(
            w.layers_backward_time / w.backward_time - 1 for w in wholes
        ),
        "time_errors": sorted(time_error(w) for w in wholes),
        "stash_bytes": wholes[0].stash_bytes,
        "stash_error": stash_error(wholes[0]),
        "layer_spread": statistics.median(_layer_spread(profile) for profile in profiles),
        "device": profiles[0].device.name,
    }
    if asked.json:
        sys.stdout.write(json.dumps(row) + "\n")
    return row


def _layer_spread(profile: Profile) -> float:
    """The layers' spreads divided by their times, weighted by the times."""
    layers = profile.graph.layers
    spread = sum(la.forward_spread + la.input_grad_spread + la.weight_grad_spread for la in layers)
    return spread / sum(la.forward_time + la.input_grad_time + la.weight_grad_time for la in layers)


def _table(rows: list[dict[str, object]]) -> Table:
    table = Table(
        "model", "layers", "step", "time off", "range", "F off", "B off", "spread", "stash"
    )
    table.add_column("bytes off")
    for row in rows:
        errors: list[float] = row["time_errors"]  # type: ignore[assignment]
        table.add_row(
            str(row["model"]),
            str(row["layers"]),
            format_time(float(str(row["step_time"]))),
            f"{statistics.median(errors):+.1%}",
            f"{errors[0]:+.1%} … {errors[-1]:+.1%}",
            f"{row['forward_error']:+.1%}",
            f"{row['backward_error']:+.1%}",
            f"{row['layer_spread']:.1%}",
            format_bytes(float(str(row["stash_bytes"]))),
            f"{row['stash_error']:+.2%}",
        )
    return table


if __name__ == "__main__":
    main()
