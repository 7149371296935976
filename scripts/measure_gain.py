"""Measure the solved cut's gain over the usual cuts: predicted, and on two processes.

    autopart probe --ranks 2 -o cluster.json
    python scripts/measure_gain.py --cluster cluster.json
    python scripts/measure_gain.py --cluster cluster.json resnet-50 --rounds 3 --steps 8

Each model is profiled on this machine with one thread. It is cut into two stages three times:
uniform layers, balanced parameters, and the cut that `autopart solve` finds.

The plans run in turns with 1F1B, `--rounds` times `--steps` steps. A machine that slows down then
slows all plans. A plan's step is the median over its rounds. A gain is the other plan's step
divided by the solved plan's, minus 1. `--json` prints one JSON line for each model.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

import autopart
from autopart.units import format_share, format_time

RANKS = 2
HEAVY_ENDS = """
from autopart.zoo.llama import Llama, LlamaSize
from autopart.zoo.tokens import language_source

SIZE = LlamaSize({layers}, {width}, {inner}, 8, 4, vocabulary=128256, length={length}, tied=False)
SOURCE = language_source("heavy-ends", lambda: Llama(SIZE), SIZE.vocabulary, SIZE.length)
build_model, example_inputs = SOURCE.build_model, SOURCE.example_inputs
example_target, loss_fn = SOURCE.example_target, SOURCE.loss_fn
"""


class Case(NamedTuple):
    """A model with its microbatches."""

    model: str
    """Model argument for autopart; `heavy-ends` stands for the file above."""
    microbatch_size: int
    microbatches: int


CASES = {
    "heavy-ends": Case("heavy-ends", 1, 4),
    "resnet-tiny": Case("zoo:resnet-tiny", 8, 8),
    "resnet-50": Case("zoo:resnet-50", 1, 4),
    "unet-tiny": Case("zoo:unet-tiny", 8, 8),
    "gpt2-tiny": Case("zoo:gpt2-tiny", 4, 8),
    "encdec-tiny": Case("zoo:encdec-tiny", 4, 8),
}
CUTS = ("uniform", "parameters", "auto")


def main() -> None:
    asked = _options()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.cases:
            rows.append(_row(name, CASES[name], asked, Path(folder)))
            if asked.json:
                sys.stdout.write(json.dumps(rows[-1]) + "\n")
    if not asked.json:
        Console(width=120).print(_table(rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cases", nargs="*", default=list(CASES), choices=[*CASES, []])
    parser.add_argument("--cluster", type=Path, help="file from autopart probe for two ranks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--layers", type=int, default=8, help="layers of heavy-ends")
    for option, default in (("--width", 512), ("--inner", 1536), ("--length", 128)):
        parser.add_argument(option, type=int, default=default, help=f"{option[2:]} of heavy-ends")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _row(name: str, case: Case, asked: argparse.Namespace, folder: Path) -> dict[str, object]:
    model = case.model
    if model == "heavy-ends":
        file = folder / "heavy_ends.py"
        file.write_text(HEAVY_ENDS.format(**vars(asked)))
        model = str(file)
    profile = autopart.profile_model(
        model, microbatch_size=case.microbatch_size, repeats=asked.repeats
    )
    plans = {cut: _plan(profile, case, cut, asked.cluster) for cut in CUTS}
    steps: dict[str, list[float]] = {cut: [] for cut in CUTS}
    for _ in range(asked.rounds):
        for cut, plan in plans.items():
            run = autopart.run_plan(plan, model, steps=asked.steps)
            assert run is not None, "the ranks are started here"
            steps[cut].append(run.step_time)
    predicted = {cut: plan.prediction.step_time for cut, plan in plans.items()}
    measured = {cut: statistics.median(times) for cut, times in steps.items()}
    return {
        "model": name,
        "device": profile.device.name,
        "layers": {
            cut: [len(stage.layers) for stage in plan.stages] for cut, plan in plans.items()
        },
        "predicted": predicted,
        "measured": measured,
        "rounds": steps,
        "predicted_gain": _gains(predicted),
        "measured_gain": _gains(measured),
        "warnings": profile.warnings,
    }


def _plan(profile: autopart.Profile, case: Case, cut: str, cluster: Path | None) -> autopart.Plan:
    machine = autopart.load_cluster(cluster) if cluster else autopart.cluster_of("cpu", gpus=RANKS)
    return autopart.solve(
        profile,
        machine,
        num_microbatches=case.microbatches,
        num_stages=RANKS,
        num_replicas=1,
        schedule="1f1b",
        solver=cut,
    )


def _gains(steps: dict[str, float]) -> dict[str, float]:
    return {cut: steps[cut] / steps["auto"] - 1 for cut in CUTS[:-1]}


def _table(rows: list[dict[str, object]]) -> Table:
    table = Table(
        "model", "cut", "layers", "predicted", "measured", "off", "gain predicted", "measured"
    )
    for row in rows:
        for cut in CUTS:
            predicted, measured = row["predicted"][cut], row["measured"][cut]  # type: ignore[index]
            gains = [row[key].get(cut) for key in ("predicted_gain", "measured_gain")]  # type: ignore[attr-defined]
            table.add_row(
                str(row["model"]) if cut == CUTS[0] else "",
                "solved" if cut == "auto" else cut,
                " | ".join(map(str, row["layers"][cut])),  # type: ignore[index]
                format_time(predicted),
                format_time(measured),
                f"{predicted / measured - 1:+.1%}",
                *("" if gain is None else format_share(gain) for gain in gains),
            )
    return table


if __name__ == "__main__":
    main()
