"""Plans with a tensor degree for large models, against tensor degree 8 with uniform layers.

Usage: .venv/bin/python scripts/measure_tensor.py [--profiles FOLDER] [--rows llama-70b:16 ...] [--time-limit 400]

Each row is a Llama on so many H100 in nodes of 8, with ZeRO-1 and `--sync megatron`: bfloat16, one sequence of 4,096 tokens per microbatch, tensor
degrees 1, 2, 4 and 8, 4 samples per GPU and step. The plan is the best over all degrees with `--recompute auto`. The other
one is the best with degree 8 and equally many layers per stage, where no layer, the cheap part of all layers, or every layer
is recomputed.

With --profiles the profile is that of `autopart profile --tensor` for three blocks (scripts/llama_three_blocks.py), whose inner one
is repeated. It lies in FOLDER and is made where it is missing. Without, it follows from formulas. scripts/measure_recompute.py has those of degree 1. For s tokens, width h, keys kv and MLP f:

    stash of a block     2 s (3 h + (2 h + 2 kv + 4 f) / t)      two norms' results and the residual stay whole
      sequence parallel  2 s (2 h + (3 h + 2 kv + 4 f) / t)      the norms' results are gathered
    collectives          of 2 s h bytes: two all-reduces forward, two backward beneath W. With sequence parallelism two
                         gathers and two scatters forward; backward two gathers, and two scatters beneath W. Embedding and
                         head have one each way. Gradients of norms are summed once per step.

All else is a t-th, except values without sequence parallelism.

Prints one JSON line per row. Seconds are of the processor. The time limit is generous, as it counts seconds of the wall.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import msgspec
from measure_recompute import MODELS, Shape, analytic_profile
from repeated_blocks import with_blocks

import autopart
from autopart.cli.main import exit_code
from autopart.errors import AutopartError
from autopart.records.group_variants import Collective, GroupVariant, LayerCollectives
from autopart.records.layer_graph import Layer, LayerGraph, Recompute
from autopart.records.rank_group import Group, group_size

GPU, GPUS_PER_NODE, TOKENS = "h100-sxm", 8, 4096
MODEL_FILE = Path(__file__).with_name("llama_three_blocks.py")
DEGREES, DEGREE = (2, 4, 8), 8
ROWS = ("llama-70b:8", "llama-70b:16", "llama-70b:64", "llama-405b:512", "llama-405b:1024")
ON_ONE_NODE = {"offload_optimizer": "auto"}
"""llama-70b does not fit on 8 GPUs whose optimizer state stays on the device."""


def main() -> None:
    """Print each row that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profiles", type=Path, metavar="FOLDER")
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="MODEL:GPUS")
    parser.add_argument("--time-limit", type=float, default=400.0)
    asked = parser.parse_args()
    for row in asked.rows:
        model, _, gpus = row.partition(":")
        profile = (
            profile_of(model, asked.profiles)
            if asked.profiles
            else formula_profile(MODELS[model], model)
        )
        print(json.dumps(measured(profile, int(gpus), asked.time_limit)), flush=True)


def formula_profile(shape: Shape, model: str) -> autopart.Profile:
    """The model's profile by the formulas above."""
    profile = analytic_profile(shape, model, TOKENS)
    variants = tuple(
        _variant(profile.graph, shape, degree, split=split)
        for degree in DEGREES
        for split in (False, True)
    )
    return msgspec.structs.replace(profile, variants=variants)


def _variant(graph: LayerGraph, shape: Shape, degree: int, *, split: bool) -> GroupVariant:
    layers = tuple(_shard(layer, shape, degree, split=split) for layer in graph.layers)
    part = degree if split else 1
    values = tuple(msgspec.structs.replace(v, bytes=v.bytes // part) for v in graph.values)
    return GroupVariant(
        group=Group(tensor=degree, sequence_parallel=split),
        graph=msgspec.structs.replace(graph, layers=layers, values=values),
        collectives=tuple(
            LayerCollectives(layer=la.name, collectives=_collectives(la, shape, split=split))
            for la in graph.layers
        ),
    )


def _shard(layer: Layer, shape: Shape, degree: int, *, split: bool) -> Layer:
    def part(own: Recompute | None) -> Recompute | None:
        return own and Recompute(
            extra_time=own.extra_time / degree, stash_bytes=own.stash_bytes // degree
        )

    stash = layer.stash_bytes // degree
    if layer.kind == "block":
        whole = (2 if split else 3) * 2 * TOKENS * shape.width
        stash = whole + (layer.stash_bytes - whole) // degree
    return msgspec.structs.replace(
        layer,
        forward_time=layer.forward_time / degree,
        input_grad_time=layer.input_grad_time / degree,
        weight_grad_time=layer.weight_grad_time / degree,
        update_time=layer.update_time / degree,
        param_bytes=layer.param_bytes // degree,
        grad_bytes=layer.grad_bytes // degree,
        num_trainable=layer.num_trainable // degree,
        stash_bytes=stash,
        workspace_bytes=layer.workspace_bytes // degree,
        recompute=part(layer.recompute),
        selective=part(layer.selective),
    )


def _collectives(layer: Layer, shape: Shape, *, split: bool) -> tuple[Collective, ...]:
    """One call in each direction for embedding and head, two for a block."""
    size, count = 2 * TOKENS * shape.width, 2 if layer.kind == "block" else 1
    gather, scatter = ("all_gather", "reduce_scatter") if split else (None, "all_reduce")
    found: list[Collective] = []
    if layer.kind != "head":
        found += count * [_call(scatter, size, "forward", recomputed=True)]
    if layer.kind != "embedding":
        found += count * [_call(scatter, size, "input_grad", beneath="weight_grad")]
    if gather and layer.kind != "embedding":
        found += count * [_call(gather, size, "forward", recomputed=True)]
    if gather and layer.kind != "head":
        found += count * [_call(gather, size, "input_grad")]
    if gather and layer.kind == "block":
        found.append(_call("all_reduce", 4 * shape.width, "step"))
    return tuple(found)


def _call(kind: Any, size: int, phase: Any, **more: Any) -> Collective:
    return Collective(kind=kind, bytes=size, phase=phase, **more)


def profile_of(model: str, folder: Path) -> autopart.Profile:
    """The model's profile by the engine with all tensor degrees; three blocks are profiled, and the inner one is repeated."""
    path = folder / f"{model}-{GPU}-mb1-tensor.json"
    if not path.exists():
        line = (
            f"profile {MODEL_FILE}:build_{model.removeprefix('llama-')} --device meta --gpu {GPU} --dtype bfloat16 "
            f"--microbatch-size 1 --tensor 1,2,4,8 --sequence-parallel -o {path}"
        )
        if exit_code(line.split()) != 0:
            raise SystemExit(1)
    profile = with_blocks(autopart.load_profile(path), MODELS[model].blocks)
    source = msgspec.structs.replace(profile.source, model=model)
    return msgspec.structs.replace(profile, source=source)


def measured(profile: autopart.Profile, gpus: int, time_limit: float) -> dict[str, object]:
    """One row: the plan, its figures, and the uniform plan beside it."""
    cluster = autopart.cluster_of(GPU, gpus, nodes=max(1, gpus // GPUS_PER_NODE))
    options: dict[str, Any] = {"zero1": True, "sync": "megatron", "time_limit": time_limit}
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
    options["time_limit"] = min(time_limit, 60.0)
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
        "degree": group_size(plan.group),
        "tensor": msgspec.to_builtins(plan.group) if group_size(plan.group) > 1 else None,
        "stages": len(plan.stages),
        "replicas": len(plan.stages[0].ranks),
        "schedule": plan.schedule,
        "recomputed": sum(len(stage.recompute) for stage in plan.stages),
        "selective": sum(len(stage.selective) for stage in plan.stages),
        "on_host": sum(stage.optimizer_on_host for stage in plan.stages),
    }


if __name__ == "__main__":
    main()
