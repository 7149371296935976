"""Compare layer-by-layer recompute with uniform plans that recompute all layers or none.

    python scripts/measure_recompute.py --models llama-8b llama-70b --gpus 8 64 --sequence 8192

The models are analytic: blocks with GPT and Llama shapes in bfloat16, with AdamW and float32 master
copies. A microbatch has one sequence, and there is no tensor parallelism. The nodes have eight
h100-sxm at the rates in autopart/records/nvidia_gpus.py. With `--zero1` replicas share the optimizer
state.

A block's forward takes 2 flops per token and parameter, and 2 s^2 h for causal attention. Its
backward takes twice as many. The table has the stash of a block with s tokens and width h, without
the block's input. A second line has the stash that stays under selective recompute: the results of
products with parameters.

    GPT     32 s h                    Korthikanti et al. 2022, section 4, attention scores left out
            18 s h                    q, k and v, the attention's result, both results of the MLP
    Llama   2 s (5 h + 2 kv + 4 f)    two norms, q, attention, residual; k and v; gated MLP
            2 s (2 h + 2 kv + 2 f)    q, the attention's result; k and v; both results of the MLP

The cheap part repeats the attention's flops, and reads and writes the values that it makes.

Prints one JSON line for each case. It has step, gap and processor seconds for `--recompute auto`,
alone and with `--offload auto` (PCIe from autopart/records/nvidia_gpus.py). It also has the step of
the best uniform plan, and the gains over it. Uniform plans recompute nothing or everything, over
all stages, replicas and schedules. Where nothing fits, the line has the planner's message about the
least memory and the fewest GPUs.

    python scripts/measure_recompute.py --long-chain

solves 126 layers with the first model's block shape, on 16 stages with 80 GiB and 64 microbatches.
It allows recompute, then both, then offload. Each is one first solve and one sweep over 20 memory
sizes.
"""

import argparse
import functools
import itertools
import json
import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

import autopart
from autopart.errors import InfeasibleError
from autopart.records.known_gpus import find_gpu
from autopart.records.layer_graph import Layer, LayerGraph, Recompute, Value
from autopart.records.profile import Device, Profile, Source
from autopart.search.memory_sweep import memory_sweep

ALL_OR_NOTHING = ("never", "always")
GPU, GPUS_PER_NODE, MICROBATCHES_PER_GPU = "h100-sxm", 8, 2
LONG_CHAIN, SIZES = (126, 16), 20
"""Layers and stages of the long chain, and the number of memory sizes in its sweep."""


class Shape(NamedTuple):
    """A decoder: numbers of blocks and words, and widths of the model, the MLP and the keys."""

    blocks: int
    width: int
    mlp: int
    keys: int
    words: int
    gated: bool


MODELS = {
    "gpt-7b": Shape(32, 4096, 4 * 4096, 4096, 50_257, gated=False),
    "gpt-175b": Shape(96, 12_288, 4 * 12_288, 12_288, 50_257, gated=False),
    "llama-8b": Shape(32, 4096, 14_336, 1024, 128_256, gated=True),
    "llama-70b": Shape(80, 8192, 28_672, 1024, 128_256, gated=True),
    "llama-405b": Shape(126, 16_384, 53_248, 1024, 128_256, gated=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--gpus", nargs="+", type=int, default=[8, 64, 512])
    parser.add_argument("--sequence", nargs="+", type=int, default=[8192, 32_768])
    parser.add_argument("--time-limit", type=float, default=60.0)
    parser.add_argument("--zero1", action="store_true")
    parser.add_argument("--long-chain", action="store_true")
    asked = parser.parse_args()
    if asked.long_chain:
        measure_long_chain(asked.models[0], asked.sequence, asked.time_limit)
        return
    for name in asked.models:
        for sequence in asked.sequence:
            profile = analytic_profile(MODELS[name], name, sequence)
            for gpus in asked.gpus:
                row = {"model": name, "sequence": sequence, "gpus": gpus}
                row["layers"] = len(profile.graph.layers)
                row |= compare(profile, gpus, zero1=asked.zero1, time_limit=asked.time_limit)
                print(json.dumps(row), flush=True)


def measure_long_chain(name: str, sequences: Sequence[int], time_limit: float) -> None:
    """Print one JSON line for each sequence length and each pair of allowed policies."""
    layers, stages = LONG_CHAIN
    for sequence in sequences:
        profile = analytic_profile(
            MODELS[name]._replace(blocks=layers - 2), f"{name}-{layers}", sequence
        )
        cluster = autopart.cluster_of(GPU, stages, nodes=stages // GPUS_PER_NODE)
        for recompute, offload in (("auto", "never"), ("auto", "auto"), ("never", "auto")):
            solved = functools.partial(
                autopart.solve,
                profile,
                num_microbatches=4 * stages,
                num_stages=stages,
                recompute=recompute,
                offload=offload,
            )
            began = time.process_time()
            plan = solved(cluster, time_limit=time_limit)
            row = _row(plan, None, time.process_time() - began)
            began = time.process_time()
            memory_sweep(
                lambda target, seconds, solved=solved: solved(target, time_limit=seconds),
                cluster,
                SIZES,
                SIZES * time_limit,
            )
            row["sweep_seconds"] = round(time.process_time() - began, 2)
            case = {"sequence": sequence, "recompute": recompute, "offload": offload}
            print(json.dumps(case | row), flush=True)


def compare(profile: Profile, gpus: int, *, zero1: bool, time_limit: float) -> dict[str, object]:
    """The plans with `--recompute auto` and the best uniform plan on `gpus` GPUs."""

    def solved(solver: str, recompute: str, offload: str) -> autopart.Plan | str:
        """The best plan, or the planner's message where nothing fits."""
        try:
            return autopart.solve(
                profile,
                autopart.cluster_of(GPU, gpus, nodes=max(1, gpus // GPUS_PER_NODE)),
                num_microbatches=MICROBATCHES_PER_GPU * gpus,
                solver=solver,
                recompute=recompute,
                offload=offload,
                zero1=zero1,
                time_limit=time_limit,
            )
        except InfeasibleError as error:
            return str(error)

    uniform = [solved("uniform", how, "never") for how in ALL_OR_NOTHING]
    steps = [None if isinstance(own, str) else own.prediction.step_time for own in uniform]
    best = min((step for step in steps if step is not None), default=None)
    row: dict[str, object] = {"uniform_kept": steps[0], "uniform_recomputed": steps[1]}
    for offload in ("never", "auto"):
        began = time.process_time()
        plan = solved("auto", "auto", offload)
        seconds = time.process_time() - began
        row[f"offload_{offload}"] = plan if isinstance(plan, str) else _row(plan, best, seconds)
    return row


def _row(plan: autopart.Plan, best: float | None, seconds: float) -> dict[str, object]:
    return {
        "step": plan.prediction.step_time,
        "gain": best / plan.prediction.step_time - 1 if best is not None else None,
        "gap": plan.certificate.gap,
        "seconds": round(seconds, 2),
        "stages": len(plan.stages),
        "replicas": len(plan.stages[0].ranks),
        "schedule": plan.schedule,
        "recomputed": sum(len(stage.recompute) for stage in plan.stages),
        "selective": sum(len(stage.selective) for stage in plan.stages),
        "offloaded": sum(len(stage.offload) for stage in plan.stages),
    }


def analytic_profile(shape: Shape, name: str, sequence: int) -> Profile:
    """A profile for a shape, with one sequence of `sequence` tokens per microbatch."""
    s = sequence
    h, f, kv = shape.width, shape.mlp, shape.keys
    params = 2 * h * (h + kv) + (3 if shape.gated else 2) * h * f
    # Bytes per microbatch; the head of this file derives both.
    stash = 2 * s * (5 * h + 2 * kv + 4 * f) if shape.gated else 32 * s * h
    left = 2 * s * (2 * h + 2 * kv + 2 * f) if shape.gated else 18 * s * h
    block = _layer("block", params, 2 * s * params + 2 * s * s * h, stash, 6 * s * f)
    block = msgspec.structs.replace(
        block, selective=_cheap_part(2 * s * s * h, moved=2 * (stash - left), left=left)
    )
    words = shape.words * h
    embedding = _layer("embedding", words, 0, 0, 2 * s * h)
    logits = s * shape.words
    head = _layer("head", words, 2 * s * words, 6 * logits, 4 * logits)
    layers = [embedding]
    layers += [msgspec.structs.replace(block, name=f"h.{at}") for at in range(shape.blocks)]
    layers += [head]
    values = tuple(
        Value(
            name=f"{a.name}.out",
            producer=a.name,
            consumers=(b.name,),
            bytes=2 * s * h,
            has_gradient=True,
            kept_by=(b.name,),
        )
        for a, b in itertools.pairwise(layers)
    )
    return Profile(
        method="analytic",
        source=Source(
            model=f"{name}-{sequence}",
            graph_hash="0" * 16,
            num_params=sum(layer.num_trainable for layer in layers),
            software={},
        ),
        device=Device(kind="cuda", name=GPU),
        dtype="bfloat16",
        microbatch_size=1,
        graph=LayerGraph(layers=tuple(layers), values=values),
    )


def _cheap_part(flops: int, moved: int, left: int) -> Recompute:
    gpu = find_gpu(GPU)
    computing = flops / (gpu.flops["bfloat16"] * gpu.compute_efficiency)
    moving = moved / (gpu.memory_bandwidth * gpu.memory_efficiency)
    return Recompute(extra_time=computing + moving, stash_bytes=left)


def _layer(kind: str, params: int, flops: int, stash: int, workspace: int) -> Layer:
    gpu = find_gpu(GPU)
    forward = flops / (gpu.flops["bfloat16"] * gpu.compute_efficiency)
    # Seconds for AdamW's update, which moves eight times the bytes of the 16-bit weights.
    moved = 2 * params * 8 / gpu.memory_bandwidth
    return Layer(
        name=kind,
        kind=kind,
        forward_time=forward,
        input_grad_time=forward,
        weight_grad_time=forward,
        update_time=moved,
        forward_flops=flops,
        param_bytes=2 * params,
        grad_bytes=2 * params,
        num_trainable=params,
        stash_bytes=stash,
        workspace_bytes=workspace,
        recompute=Recompute(extra_time=forward, stash_bytes=0) if stash else None,
    )


if __name__ == "__main__":
    main()
