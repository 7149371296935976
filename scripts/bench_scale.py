"""Solving and checking at scale: long chains on many GPUs.

    python scripts/bench_scale.py [--time-limit SECONDS] [CASE ...]

Prints one JSON line for each case: processor seconds of `solve` and of `verify`, the gap, the plan's
shape and the partitions simulated. The cases:

    equal-126       126 equal layers on 16,384 GPUs
    different-126   126 layers whose times differ by up to half, on 16,384 GPUs
    llama-405b      the shape of llama-405b, 4,096 tokens, ZeRO-1 and recompute, on 16,384 GPUs
    different-1000  1,000 layers whose times differ by up to half, on 64 GPUs
    uneven-N        96 layers whose times differ by up to half, replicas per stage, on N GPUs
                    (16, 64, 512, 1024)

The layers differ by a fixed seed. All other options are the defaults.
"""

import argparse
import itertools
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import autopart
from autopart.errors import InfeasibleError
from autopart.records.layer_graph import Layer, LayerGraph, Value
from autopart.records.profile import Device, Profile, Source

sys.path.insert(0, str(Path(__file__).parent))
from measure_recompute import MODELS, analytic_profile

GPU, GPUS_PER_NODE = "h100-sxm", 8

UNEVEN = (16, 64, 512, 1024)
"""Numbers of GPUs with replicas per stage."""


def main() -> None:
    """Measure each case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cases = _cases()
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(cases))
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds, for each case")
    asked = parser.parse_args()
    for name in asked.cases or cases:
        print(json.dumps({"case": name, **_measured(*cases[name], asked.time_limit)}), flush=True)


def _cases() -> dict[str, tuple[Profile, int, dict[str, Any]]]:
    """For each case its profile, its GPUs and its options."""
    large = analytic_profile(MODELS["llama-405b"], "llama-405b", 4096)
    uneven = {f"uneven-{n}": (_chain(96, 0.5), n, {"replicas_per_stage": True}) for n in UNEVEN}
    return {
        "equal-126": (_chain(126, 0.0), 16_384, {}),
        "different-126": (_chain(126, 0.5), 16_384, {}),
        "llama-405b": (large, 16_384, {"recompute": "auto", "zero1": True}),
        "different-1000": (_chain(1000, 0.5), 64, {}),
        **uneven,
    }


def _chain(count: int, spread: float) -> Profile:
    """Layers in a row, whose times differ from their mean by up to the share `spread`."""
    rng = random.Random(0)
    layers: list[Layer] = []
    for at in range(count):
        scale = 1 + rng.uniform(-spread, spread)
        layers.append(
            Layer(
                name=f"l{at}",
                kind="block",
                forward_time=1e-3 * scale,
                input_grad_time=1e-3 * scale,
                weight_grad_time=1e-3 * scale,
                update_time=1e-4,
                param_bytes=1 << 24,
                grad_bytes=1 << 24,
                num_trainable=1 << 23,
                stash_bytes=1 << 24,
                workspace_bytes=1 << 20,
            )
        )
    values = tuple(
        Value(
            name=f"{a.name}.out",
            producer=a.name,
            consumers=(b.name,),
            bytes=1 << 22,
            has_gradient=True,
            kept_by=(b.name,),
        )
        for a, b in itertools.pairwise(layers)
    )
    return Profile(
        method="analytic",
        source=Source(model=f"chain-{count}", graph_hash="0" * 16, num_params=0, software={}),
        device=Device(kind="cuda", name=GPU),
        dtype="bfloat16",
        microbatch_size=1,
        graph=LayerGraph(layers=tuple(layers), values=values),
    )


def _measured(
    profile: Profile, gpus: int, options: dict[str, Any], time_limit: float
) -> dict[str, object]:
    cluster = autopart.cluster_of(GPU, gpus, nodes=max(1, gpus // GPUS_PER_NODE))
    began = time.process_time()
    try:
        plan = autopart.solve(profile, cluster, time_limit=time_limit, **options)
    except InfeasibleError as error:
        seconds = time.process_time() - began
        return {"solve_seconds": round(seconds, 2), "infeasible": str(error)}
    solved = time.process_time()
    checks = autopart.verify(plan, profile)
    return {
        "solve_seconds": round(solved - began, 2),
        "verify_seconds": round(time.process_time() - solved, 2),
        "verified": all(check.passed for check in checks),
        "gap": plan.certificate.gap,
        "step": plan.prediction.step_time,
        "stages": len(plan.stages),
        "replicas": sorted({len(stage.ranks) for stage in plan.stages}),
        "schedule": plan.schedule,
        "simulated": plan.certificate.simulated,
    }


if __name__ == "__main__":
    main()
