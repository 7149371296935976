"""Steps and memory of zero bubble's four models, from calibrated analytic profiles, beside the published ones.

    python scripts/compare_zero_bubble.py --profiles FOLDER [--data DATA] [--published-sends]

FOLDER has the profiles that `compare_analytic.py --only zero-bubble` made. Their calibration has the rows of 1.5B and 6.2B
alone. The middle one of three blocks is repeated. Embedding and head count as a block each, and stages have equally many.

Published steps (Qi et al., arXiv 2401.10241): spans from Tables 5 and 9, m (F + I + W) / (1 - rate), without the optimizer; and
Table 4's samples per GPU and second for 1F1B and 1F1B-I, with it. Published memory: Table 4, the most of any rank; that of ZB-1p
stands for ZB-H1, which keeps as many microbatches. Sends are priced on `dgx-a100`, while the paper's nodes have RoCE.

With --published-sends each send takes the seconds of Table 9.

Every predicted figure is analytic; nothing was measured here.
"""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from compare_korthikanti import TRAINING
from repeated_blocks import block_of, with_blocks

from autopart.cost.in_flight import stages_in_flight
from autopart.pricing import predict, simulated
from autopart.records.cluster import Cluster, Link
from autopart.records.known_clusters import find_preset, preset_cluster
from autopart.records.layer_graph import LayerGraph
from autopart.records.layouts import Layout, Partition
from autopart.records.problem import Problem
from autopart.records.profile import Profile, load_profile
from autopart.schedules.catalogue import KINDS, make_schedule

DATA = Path(os.environ.get("AUTOPART_DATA", Path(__file__).parents[2] / "shared" / "data"))
SCHEDULES = {"1F1B": "1f1b", "1F1B-I": "interleaved-1f1b", "ZB-H1": "zb-h1"}
MEMORY_OF = {"1F1B": "1F1B", "1F1B-I": "1F1B-I", "ZB-H1": "ZB-1p"}
"""The column of Table 4 with a schedule's memory."""
_ROOM = 1 << 46
_BYTES, _LENGTH = 2, 1024
"""Bytes of an element in bfloat16, and tokens of a sample."""


class Predicted(NamedTuple):
    """Seconds and bytes of one step."""

    step: float
    span: float
    """Without the optimizer and the sums of tied gradients."""
    peak: int
    """Bytes of the fullest rank."""


def partition_of(graph: LayerGraph, blocks: int, stages: int) -> Partition:
    """Equally many places per stage, where the embedding and the head are a place each."""
    found: list[list[int]] = [[] for _ in range(stages)]
    each, place = (blocks + 2) // stages, 0
    for layer_place, layer in enumerate(graph.layers):
        home = block_of(layer.name)
        if home is not None:
            place = home + 1
        elif place:
            place = blocks + 1
        found[place // each].append(layer_place)
    return tuple(map(tuple, found))


def with_sends(cluster: Cluster, model: Mapping[str, int], seconds: float) -> Cluster:
    """The cluster with plain links on which the value between two stages takes `seconds`."""
    moved = _BYTES * model["microbatch"] * _LENGTH * model["hidden"]
    link = Link(bandwidth=moved / seconds, latency=0.0)
    return msgspec.structs.replace(cluster, intra_node=link, inter_node=link, network=None)


def predicted(
    profile: Profile,
    model: Mapping[str, int],
    name: str,
    microbatches: int,
    send: float | None = None,
) -> Predicted:
    """The step of a schedule on one pipeline over `p` GPUs; a send takes `send` seconds, or what `dgx-a100` takes."""
    ranks, blocks = model["p"], model["layers"]
    each = (blocks + 2) // ranks if name == "1F1B-I" else 1
    whole = with_blocks(profile, blocks)
    cluster = preset_cluster(find_preset("dgx-a100"), max(1, ranks // 8))
    cluster = msgspec.structs.replace(cluster, memory_bytes=_ROOM)
    if send is not None:
        cluster = with_sends(cluster, model, send)
    problem = Problem(
        graph=whole.graph,
        cluster=cluster,
        microbatch_size=model["microbatch"],
        num_microbatches=microbatches,
        training=TRAINING,
    )
    schedule = SCHEDULES[name]
    layout = Layout(
        schedule=schedule,
        stage_ranks=tuple((rank,) for rank in KINDS[schedule].placement(ranks, each)),
        num_microbatches=microbatches,
    )
    partition = partition_of(whole.graph, blocks, ranks * each)
    orders = make_schedule(layout.schedule, layout.stage_ranks, microbatches)
    in_flight = stages_in_flight(orders, layout.stage_ranks)
    stages, syncs = predict(problem, layout, partition, None, in_flight)
    step = simulated(cluster, layout, stages, syncs, None)
    still = tuple(msgspec.structs.replace(one, update_time=0.0) for one in stages)
    span = simulated(cluster, layout, still, (), None).step_time
    return Predicted(step.step_time, span, max(step.rank_peak_bytes))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA / "published")
    parser.add_argument("--profiles", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--published-sends", action="store_true")
    asked = parser.parse_args()
    content: dict[str, Any] = json.loads((asked.data / "zero_bubble.json").read_text("utf-8"))
    rates, worst = content["table5_bubble_rate"], {"span": 0.0, "step": 0.0, "memory": 0.0}
    print("| model | schedule | span | step | memory of the fullest rank |\n|---|---|---|---|---|")
    for place, (name, model) in enumerate(content["models"].items()):
        (path,) = asked.profiles.glob(f"{name}-mb{model['microbatch']} zb *.json")
        profile = load_profile(path)
        for schedule in SCHEDULES:
            spans, steps, peak = [], [], 0
            for row, (count, times) in enumerate(content["table9_ms"][name].items()):
                send = times[3] * 1e-3 if asked.published_sends else None
                found = predicted(profile, model, schedule, int(count), send)
                rate = rates[name][count][rates["columns"].index(schedule)]
                spans.append(found.span / (int(count) * sum(times[:3]) * 1e-3 / (1 - rate)) - 1)
                peak = max(peak, found.peak)
                if schedule in content["table4_samples_per_gpu_s"]:
                    pace = content["table4_samples_per_gpu_s"][schedule][name][row]
                    published = int(count) * model["microbatch"] / (model["p"] * pace)
                    steps.append(found.step / published - 1)
            gb = content["table4_memory_gb"][MEMORY_OF[schedule]][place]
            memory = peak / 1e9 / gb - 1
            for what, errors in (("span", spans), ("step", steps), ("memory", [memory])):
                worst[what] = max(worst[what], *map(abs, errors), 0.0)
            told = (", ".join(f"{e:+.1%}" for e in errors) or "–" for errors in (spans, steps))
            print(
                f"| {name} | {schedule} | {' | '.join(told)} | {peak / 1e9:.1f} GB of {gb} ({memory:+.1%}) |"
            )
    print("\nworst errors: " + ", ".join(f"{what} {own:.1%}" for what, own in worst.items()))


if __name__ == "__main__":
    main()
