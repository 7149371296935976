"""Compare the best plans under GPipe and 1F1B with those under all named schedules, where layers may be recomputed.

    python scripts/measure_rank_policies.py --models llama-70b --gpus 64 --schedules gpipe,1f1b
    python scripts/measure_rank_policies.py --models llama-70b --gpus 64 --schedules interleaved-1f1b \
        --stages 64 --stages-per-rank 2

The profiles, nodes and GPUs are those of scripts/measure_recompute.py: analytic, one sequence per microbatch. A GPU has two
microbatches unless `--microbatches` says otherwise. `--memory` gives other GPUs than 80 GiB. The time limit counts
processor seconds, which a busy machine does not change.

Prints one JSON line for each model, number of GPUs and list of schedules: step, gap, processor seconds, the fullest rank
in GiB, the shape, and how many layers are recomputed. Where nothing fits, the line has the planner's message.
"""

import argparse
import json
import time

import measure_recompute
import msgspec

import autopart
from autopart.errors import AutopartError

GPU, GPUS_PER_NODE = measure_recompute.GPU, measure_recompute.GPUS_PER_NODE
SCHEDULES = ("gpipe,1f1b", "1f1b,interleaved-1f1b", "1f1b,zb-h1,zbv")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["llama-70b", "gpt-175b"])
    parser.add_argument("--gpus", nargs="+", type=int, default=[64, 512])
    parser.add_argument("--sequence", type=int, default=8192)
    parser.add_argument("--microbatches", type=int, default=2, help="per GPU")
    parser.add_argument("--memory", type=float, default=80.0, help="GiB of one GPU")
    parser.add_argument("--zero1", action="store_true")
    parser.add_argument("--stages", type=int)
    parser.add_argument("--stages-per-rank", type=int)
    parser.add_argument("--replicas", type=int)
    parser.add_argument("--schedules", nargs="+", default=list(SCHEDULES))
    parser.add_argument("--time-limit", type=float, default=25.0)
    asked = parser.parse_args()
    time.perf_counter = time.process_time
    for name in asked.models:
        profile = measure_recompute.analytic_profile(
            measure_recompute.MODELS[name], name, asked.sequence
        )
        for gpus in asked.gpus:
            for schedule in asked.schedules:
                row = {"model": name, "gpus": gpus, "schedules": schedule}
                print(json.dumps(row | measure(profile, gpus, schedule, asked)), flush=True)


def measure(
    profile: autopart.Profile, gpus: int, schedule: str, asked: argparse.Namespace
) -> dict[str, object]:
    """The best plan under some schedules."""
    cluster = autopart.cluster_of(GPU, gpus, nodes=gpus // GPUS_PER_NODE)
    cluster = msgspec.structs.replace(cluster, memory_bytes=int(asked.memory * 2**30))
    began = time.process_time()
    try:
        plan = autopart.solve(
            profile,
            cluster,
            num_microbatches=asked.microbatches * gpus,
            schedule=schedule,
            recompute="auto",
            zero1=asked.zero1,
            num_stages=asked.stages,
            stages_per_rank=asked.stages_per_rank,
            num_replicas=asked.replicas,
            time_limit=asked.time_limit,
        )
    except AutopartError as error:
        return {"message": str(error)}
    ranks = {stage.ranks[0] for stage in plan.stages}
    return {
        "step": round(plan.prediction.step_time, 3),
        "gap": plan.certificate.gap,
        "seconds": round(time.process_time() - began, 1),
        "gib": round(max(plan.prediction.rank_peak_bytes) / 2**30, 1),
        "schedule": plan.schedule,
        "stages": len(plan.stages),
        "ranks": len(ranks),
        "replicas": len(plan.stages[0].ranks),
        "recomputed": sum(len(stage.recompute) for stage in plan.stages),
        "selective": sum(len(stage.selective) for stage in plan.stages),
    }


if __name__ == "__main__":
    main()
