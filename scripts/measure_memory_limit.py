"""Zero bubble's published models under less memory: orders, recomputation and offload chosen together.

    python scripts/measure_memory_limit.py DATA [--models 1.5B] [--caps 1 0.5] [--policies keep recompute offload]

DATA is a folder with `published/zero_bubble.json`: the times of F, I, W and a send in Table 9 of Qi et al., Zero Bubble
Pipeline Parallelism, ICLR 2024. A stage has equal blocks; embedding and head take the place of one each. A microbatch keeps
34 h + 5 a s bytes from F to I and 32 h to W per block, sample and token (its Table 1). A recomputed block keeps its input,
2 h bytes, and runs its forward again. `--flash` leaves out the attention scores, 5 a s. A cap is a share of the stash that 1F1B keeps on its first rank; weights and messages
take no room. The link to the host is an assumption: `--host` bytes per second and GPU, beside compute.

`--schedule auto` minimises the period, by which the paper counts its rates: 1 - m (F + I + W) / period. There are as many
stages as ranks, as in ZB-1p, unless `--free` leaves their number open. The time limit counts processor seconds.

Prints one JSON line for each model, cap and policies.
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import autopart
from autopart.errors import AutopartError
from autopart.records.cluster import Cluster, HostLink, Link
from autopart.records.layer_graph import Layer, LayerGraph, Recompute, SplitBackward, Value
from autopart.records.profile import Device, Profile, Source
from autopart.units import parse_bytes

SEQUENCE = 1024
POLICIES = {
    "keep": {"recompute": "never", "offload": "never"},
    "recompute": {"recompute": "auto", "offload": "never"},
    "offload": {"recompute": "never", "offload": "auto"},
    "both": {"recompute": "auto", "offload": "auto"},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--models", nargs="+", default=["1.5B"])
    parser.add_argument("--microbatches", nargs="+", default=["24"])
    parser.add_argument("--caps", nargs="+", type=float, default=[1.0, 0.5, 0.35])
    parser.add_argument("--policies", nargs="+", default=["keep", "recompute", "offload"])
    parser.add_argument("--host", default="16GB", help="bytes per second over the link to the host")
    parser.add_argument("--flash", action="store_true", help="no attention scores are kept")
    parser.add_argument(
        "--parts", type=int, default=1, help="equal layers that a block is cut into"
    )
    parser.add_argument("--schedule", default="auto")
    parser.add_argument("--free", action="store_true", help="leave the number of stages open")
    parser.add_argument("--time-limit", type=float, default=20.0)
    asked = parser.parse_args()
    time.perf_counter = time.process_time
    table = json.loads((asked.data / "published" / "zero_bubble.json").read_text("utf-8"))
    for model in asked.models:
        for count in asked.microbatches:
            if count in table["table9_ms"][model]:
                shape, times = table["models"][model], table["table9_ms"][model][count]
                for cap in asked.caps:
                    for policies in asked.policies:
                        row = {"model": model, "microbatches": int(count), "cap": cap}
                        found = measure(shape, times, int(count), cap, policies, asked)
                        print(json.dumps(row | {"policies": policies} | found), flush=True)


def measure(
    shape: dict[str, int],
    times: list[float],
    count: int,
    cap: float,
    policies: str,
    asked: argparse.Namespace,
) -> dict[str, Any]:
    """The plan with the shortest period within a share of 1F1B's memory."""
    profile = blocks(shape, times, asked.parts, scores=not asked.flash)
    ranks, each = shape["p"], len(profile.graph.layers) // shape["p"]
    stash = each * profile.graph.layers[0].stash_bytes
    link = Link(bandwidth=1e30, latency=times[3] / 1e3)
    machine = Cluster(
        gpu="A100",
        num_nodes=1,
        gpus_per_node=ranks,
        # Messages of one byte.
        memory_bytes=int(cap * ranks * stash) + 1000,
        intra_node=link,
        inter_node=link,
        host_link=HostLink(bandwidth=float(parse_bytes(asked.host)), latency=0.0, overlaps=True),
    )
    began = time.process_time()
    try:
        plan = autopart.solve(
            profile,
            machine,
            num_microbatches=count,
            num_replicas=1,
            num_stages=None if asked.free else ranks,
            schedule=asked.schedule,
            objective="period",
            time_limit=asked.time_limit,
            **POLICIES[policies],
        )
    except AutopartError as error:
        return {"message": str(error)}
    period = plan.prediction.period
    work = count * sum(times[:3]) / 1e3
    assert isinstance(period, float)
    return {
        "period_ms": round(1e3 * period, 1),
        "rate": round(1 - work / period, 4),
        "gap": plan.certificate.gap,
        "seconds": round(time.process_time() - began, 1),
        "schedule": plan.schedule,
        "stages": len(plan.stages),
        "peak": round((max(plan.prediction.rank_peak_bytes) - 1000) / (ranks * stash), 3),
        "recomputed": sum(len(stage.recompute) for stage in plan.stages),
        "offloaded": sum(len(stage.offload) for stage in plan.stages),
        "blocks": len(profile.graph.layers),
    }


def blocks(shape: dict[str, int], times: list[float], parts: int, *, scores: bool) -> Profile:
    """A model's blocks, all alike, with the paper's seconds of a stage shared out."""
    each = (shape["layers"] + 2) // shape["p"] * parts
    forward, gradient, weights = (own / 1e3 / each for own in times[:3])
    tokens = shape["microbatch"] * SEQUENCE
    hidden, heads = shape["hidden"], shape["heads"]
    stash = tokens * (34 * hidden + 5 * heads * SEQUENCE * scores) // parts
    names = [f"block{at}" for at in range(each * shape["p"])]
    layers = tuple(
        Layer(
            name=name,
            kind="Block",
            forward_time=forward,
            input_grad_time=gradient,
            weight_grad_time=weights,
            stash_bytes=stash,
            recompute=Recompute(extra_time=forward, stash_bytes=tokens * 2 * hidden),
            split_backward=SplitBackward(
                waiting_bytes=tokens * 32 * hidden // parts,
                waiting_value_bytes=0,
                input_grad_workspace_bytes=0,
                weight_grad_workspace_bytes=0,
            ),
        )
        for name in names
    )
    values = tuple(
        Value(name=f"{one}.out", producer=one, consumers=(other,), bytes=1, has_gradient=True)
        for one, other in itertools.pairwise(names)
    )
    return Profile(
        method="imported",
        source=Source(model="zero bubble", graph_hash="0" * 16, num_params=0, software={}),
        device=Device(kind="cuda", name="A100"),
        dtype="bfloat16",
        microbatch_size=1,
        graph=LayerGraph(layers=layers, values=values),
    )


if __name__ == "__main__":
    main()
