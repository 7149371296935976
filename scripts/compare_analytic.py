"""Analytic profiles beside published measurements: the plain roofline, the kernel model, and the calibrated one.

    python scripts/compare_analytic.py
    python scripts/compare_analytic.py --data ../shared/data/published --profiles FOLDER

Zero bubble (Qi et al., arXiv 2401.10241, Table 9): seconds of F, I and W of an inner stage of four GPTs on A100, without tensor
parallelism. Each model (scripts/megatron_gpt.py, sequence 1024) is profiled on meta with three blocks, and the inner one counts.
The calibration has the rows of 1.5B and 6.2B alone: three phases and three batches each. The other two are held out.

SC21 (Narayanan et al. 2021, Table 1): TFLOPs per GPU of ten GPTs on 32 to 3,072 A100, with full recompute. The calibration has
three rows: the first, the sixth and the last. The other seven are held out. The paper states no microbatch sizes and no numbers
of stages per rank. Here a microbatch has 1 sample with several stages and 4 with one stage, and a rank has the fewest stages above 1
that divide its blocks. Sends carry a t-th of a value, as in the paper's runs. FLOPs are the paper's:
96 B s l h^2 (1 + s / 6h + V / 16lh).

Every predicted figure is analytic; nothing was measured here.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from compare_korthikanti import ROWS, TRAINING, equal_stages, policies_of, sent_in_slices
from repeated_blocks import with_blocks

from autopart.calibration.fit import Row, Stretches, fit_stretches
from autopart.cost.groups_as_ranks import problem_of_groups
from autopart.cost.in_flight import stages_in_flight
from autopart.pricing import predict, simulated
from autopart.records.calibration import Calibration
from autopart.records.kernels import KINDS, Kernels, kernels_of, stretched
from autopart.records.known_clusters import find_preset, preset_cluster
from autopart.records.known_gpus import find_gpu
from autopart.records.layer_graph import Layer
from autopart.records.layouts import Layout
from autopart.records.problem import Problem
from autopart.records.profile import Profile, load_profile, save_profile
from autopart.runtime.profiling.profiler import profile_model
from autopart.schedules.catalogue import make_schedule

DATA = Path(os.environ.get("AUTOPART_DATA", Path(__file__).parents[2] / "shared" / "data"))
GPU, DTYPE, VOCABULARY = "a100-sxm-80gb", "bfloat16", 51200
KNOWN = ("1.5B", "6.2B")
"""Models of zero bubble's paper behind the calibration."""
KNOWN_ROWS = (0, 5, 9)
"""Rows of SC21's table behind the calibration."""
PHASES = ("F", "I", "W")
MODEL = """import sys
sys.path.insert(0, {folder!r})
import torch
from megatron_gpt import GPT, Size, loss_fn

def build_model():
    return GPT(Size({width}, {heads}), {vocabulary}, {length})

def example_inputs(size):
    return torch.randint({vocabulary}, (size, {length}))

example_target = example_inputs
"""


class Model(NamedTuple):
    """A GPT with three blocks, as it is profiled."""

    name: str
    width: int
    heads: int
    length: int
    microbatch: int
    degree: int = 1


def profiled(model: Model, kernels: Kernels | None, name: str, folder: Path) -> Profile:
    """The profile under a kernel model, kept in `folder` under `name`; without one, under the plain roofline."""
    kept = folder / f"{model.name}-mb{model.microbatch} {name}.json"
    if kept.exists():
        return load_profile(kept)
    print(f"profiling {kept.stem}", file=sys.stderr)
    source = folder / f"gpt_{model.name.replace('.', '_')}.py"
    fields = model._asdict() | {"folder": str(Path(__file__).parent), "vocabulary": VOCABULARY}
    source.write_text(MODEL.format(**fields), encoding="utf-8")
    given = None
    if kernels is not None:
        given = Calibration(gpu=GPU, dtype=DTYPE, kernels=kernels, source="hand")
    profile = profile_model(
        str(source),
        microbatch_size=model.microbatch,
        dtype=DTYPE,
        device="meta",
        gpu=GPU,
        calibration=given,
        tensor=(model.degree,) if model.degree > 1 else (),
    )
    save_profile(profile, kept)
    return profile


def by_kind(
    seconds: Callable[[Kernels, str], Sequence[float]], table: Kernels
) -> list[tuple[float, tuple[float, ...]]]:
    """Seconds of each figure that no stretch changes, and its seconds in each kind of kernels."""
    base = seconds(table, "table")
    twice = [seconds(stretched(table, kind, 2.0), f"{kind} at half its share") for kind in KINDS]
    found: list[tuple[float, tuple[float, ...]]] = []
    for place, own in enumerate(base):
        parts = tuple(max(0.0, other[place] - own) for other in twice)
        found.append((own - sum(parts), parts))
    return found


def zero_bubble(content: Mapping[str, Any], folder: Path) -> None:
    """Print the phases of the four models."""
    table = kernels_of(find_gpu(GPU), "megatron")
    models = [
        Model(name, own["hidden"], own["heads"], 1024, own["microbatch"])
        for name, own in content["models"].items()
    ]
    blocks = {n: (own["layers"] + 2) // own["p"] for n, own in content["models"].items()}
    measured: dict[str, Mapping[str, Sequence[float]]] = content["table9_ms"]

    def seconds(model: Model, kernels: Kernels | None, name: str) -> list[float]:
        block = inner_block(profiled(model, kernels, name, folder))
        phases = (block.forward_time, block.input_grad_time, block.weight_grad_time)
        return [blocks[model.name] * phase for phase in phases]

    rows: list[Row] = []
    for model in models:
        if model.name not in KNOWN:
            continue
        parts = by_kind(lambda kernels, name, own=model: seconds(own, kernels, name), table)
        for batch, row in measured[model.name].items():
            rows += [
                Row(f"{model.name} {phase}, {batch} microbatches", model.name, *own, ms / 1e3)
                for phase, own, ms in zip(PHASES, parts, row, strict=False)
            ]
    found = fit_stretches(rows, table.shares)
    tell(found, table)
    calibrated = msgspec.structs.replace(table, shares=found.shares)
    print("\n| stage of | phase | published ms | plain roofline | kernel model | calibrated |")
    print("|---|---|---|---|---|---|")
    worst = [0.0, 0.0, 0.0]
    for model in models:
        several = [row[:3] for row in measured[model.name].values()]
        published = [sum(column) / len(column) for column in zip(*several, strict=True)]
        columns = [
            seconds(model, None, "plain"),
            seconds(model, table, "table"),
            seconds(model, calibrated, f"zb {_tag(found)}"),
        ]
        for phase, ms, *cells in zip(PHASES, published, *columns, strict=True):
            errors = [1e3 * cell / ms - 1 for cell in cells]
            worst = [max(w, abs(e)) for w, e in zip(worst, errors, strict=True)]
            said = " | ".join(
                f"{1e3 * cell:.2f} ({error:+.1%})"
                for cell, error in zip(cells, errors, strict=True)
            )
            held = "" if model.name in KNOWN else ", held out"
            print(f"| {model.name}{held} | {phase} | {ms:.2f} | {said} |")
    print("\nworst errors: " + ", ".join(f"{own:.1%}" for own in worst))


def inner_block(profile: Profile) -> Layer:
    """The layer of the inner block."""
    (own,) = (layer for layer in profile.graph.layers if layer.name == "blocks.1")
    return own


class Run(NamedTuple):
    """One row of SC21's table, and how it is predicted."""

    model: Model
    blocks: int
    pp: int
    gpus: int
    batch: int
    tflops: float

    @property
    def replicas(self) -> int:
        """Replicas of the pipeline."""
        return self.gpus // (self.model.degree * self.pp)

    @property
    def stages(self) -> int:
        """All stages: the fewest per rank, above 1, that divide a rank's blocks."""
        each = self.blocks // self.pp
        return self.pp if self.pp == 1 else self.pp * min(v for v in (2, 3, 5) if each % v == 0)

    @property
    def flops(self) -> float:
        """Floating-point operations of a step, by the paper's formula."""
        s, h, n = self.model.length, self.model.width, self.blocks
        return 96 * self.batch * s * n * h**2 * (1 + s / (6 * h) + VOCABULARY / (16 * n * h))

    @property
    def seconds(self) -> float:
        """Published seconds of a step."""
        return self.flops / (self.gpus * self.tflops * 1e12)


def read_runs(content: Mapping[str, Any]) -> list[Run]:
    """The rows of the table."""
    found: list[Run] = []
    for params, heads, width, blocks, tp, pp, gpus, batch, tflops in content["table1"]:
        microbatch = 4 if pp == 1 else 1
        model = Model(f"{params}B-sc21", width, heads, 2048, microbatch, tp)
        found.append(Run(model, blocks, pp, gpus, batch, tflops))
    return found


def step_of(run: Run, profile: Profile) -> float:
    """Predicted seconds of a step with full recompute and equal stages, on DGX A100."""
    whole = with_blocks(profile, run.blocks)
    cluster = preset_cluster(find_preset("dgx-a100"), run.gpus // 8)
    problem = Problem(
        graph=whole.variants[0].graph if whole.variants else whole.graph,
        cluster=msgspec.structs.replace(cluster, sends="rendezvous"),
        microbatch_size=run.model.microbatch,
        num_microbatches=run.batch // run.model.microbatch,
        training=TRAINING,
    )
    row = ROWS["full"]
    if whole.variants:
        problem = problem_of_groups(problem, whole.variants[0])
        problem = msgspec.structs.replace(problem, graph=sent_in_slices(problem.graph, row))
    ranks = [tuple(range(run.replicas * own, run.replicas * (own + 1))) for own in range(run.pp)]
    layout = Layout(
        schedule="1f1b" if run.pp == 1 else "interleaved-1f1b",
        stage_ranks=tuple(ranks[stage % run.pp] for stage in range(run.stages)),
        num_microbatches=problem.num_microbatches,
    )
    partition = equal_stages(problem.graph, run.stages)
    policies = [policies_of(problem.graph, stage, row) for stage in partition]
    orders = make_schedule(layout.schedule, layout.stage_ranks, layout.num_microbatches)
    in_flight = stages_in_flight(orders, layout.stage_ranks)
    timed, syncs = predict(problem, layout, partition, policies, in_flight)
    return simulated(problem.cluster, layout, timed, syncs, None).step_time


def sc21(content: Mapping[str, Any], folder: Path) -> None:
    """Print TFLOPs per GPU of the ten models."""
    table, runs = kernels_of(find_gpu(GPU), "megatron"), read_runs(content)

    def seconds(run: Run, kernels: Kernels | None, name: str) -> float:
        return step_of(run, profiled(run.model, kernels, name, folder))

    rows: list[Row] = []
    for run in (runs[place] for place in KNOWN_ROWS):
        base = seconds(run, table, "table")
        slower = seconds(run, stretched(table, "products", 2.0), "products at half its share")
        parts = tuple(slower - base if kind == "products" else 0.0 for kind in KINDS)
        rows.append(Row(run.model.name, run.model.name, base - sum(parts), parts, run.seconds))
    found = fit_stretches(rows, table.shares)
    tell(found, table)
    calibrated = msgspec.structs.replace(table, shares=found.shares)
    print("\n| model | published TFLOPs | plain roofline | kernel model | calibrated |")
    print("|---|---|---|---|---|", flush=True)
    worst = [0.0, 0.0, 0.0]
    for place, run in enumerate(runs):
        steps = [
            seconds(run, None, "plain"),
            seconds(run, table, "table"),
            seconds(run, calibrated, f"sc21 {_tag(found)}"),
        ]
        errors = [run.seconds / step - 1 for step in steps]
        worst = [max(w, abs(e)) for w, e in zip(worst, errors, strict=True)]
        said = " | ".join(f"{run.tflops * (1 + e):.0f} ({e:+.1%})" for e in errors)
        held = "" if place in KNOWN_ROWS else ", held out"
        print(f"| {run.model.name[:-5]}{held} | {run.tflops} | {said} |", flush=True)
    print("\nworst errors: " + ", ".join(f"{own:.1%}" for own in worst))


def tell(found: Stretches, table: Kernels) -> None:
    """Print the fitted shares and their errors."""
    said = ", ".join(
        f"{kind} {getattr(table.shares, kind):.3f} -> {getattr(found.shares, kind):.3f}"
        for kind in found.fit.kinds
    )
    fit = found.fit
    print(
        f"\n{fit.rows} rows; {said}; mean error {fit.mean_error:.1%}, worst {fit.worst_error:.1%}; "
        f"held out: mean {fit.held_out_error:.1%}, worst {fit.held_out_worst:.1%}"
    )


def _tag(found: Stretches) -> str:
    return " ".join(f"{getattr(found.shares, kind):.4f}" for kind in KINDS)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA / "published")
    parser.add_argument(
        "--profiles", type=Path, default=Path("analytic-profiles"), metavar="FOLDER"
    )
    parser.add_argument("--only", choices=("zero-bubble", "sc21"))
    asked = parser.parse_args()
    asked.profiles.mkdir(exist_ok=True, parents=True)
    for name, kind, show in (
        ("zero_bubble.json", "zero-bubble", zero_bubble),
        ("megatron_sc21.json", "sc21", sc21),
    ):
        if asked.only not in (None, kind):
            continue
        path = asked.data / name
        if not path.exists():
            parser.exit(1, f"{path}: there is no such file; it has the published figures\n")
        show(json.loads(path.read_text(encoding="utf-8")), asked.profiles)


if __name__ == "__main__":
    main()
