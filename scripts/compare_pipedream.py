"""PipeDream's profiles under PipeDream's own objective, beside what its optimizer answered.

    python scripts/compare_pipedream.py FILE... --machines N [N2] --bandwidth B [B2] [--straight]

Two levels: GPUs of a node and nodes, each with the bandwidth of its links. Transfers count as with
PipeDream's --activation_compression_ratio 1 (--compression is that ratio, --no-transfers leaves it out),
and --memory is its --memory_size with --use_memory_constraint. Machines may stay idle. Prints one JSON
line for each file:

    objective        seconds of the busiest stage or link for a minibatch, as PipeDream counts them
    lower_bound      no plan has a smaller one; equal to `objective` where it is proven optimal
    solve_seconds    processor time of the solver
    stages           the file's node ids, replicas in all; in two levels also `outer_stage`,
                     `outer_replicas` (nodes that run the same) and `inner_replicas` (in each of them)
    all_sends        the same plan with the first stages' sends charged too, which PipeDream leaves
                     out; `all_sends_optimum` and `all_sends_lower_bound` are of the best plan then
    downsets         of the layer graph, null where they were not all listed
    peer_*           what PipeDream answered to the same question, in ../shared/data/baselines.json or
                     the folder that AUTOPART_DATA names; `peer_objective` is null where it did not end
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

from autopart.errors import AutopartError
from autopart.graph import LayerGraph
from autopart.importers import import_profile
from autopart.loads.pipedream import Network, Part, score
from autopart.solvers.replication.network import NetworkPlan, solve
from autopart.units import parse_bandwidth, parse_bytes

DATA = Path(os.environ.get("AUTOPART_DATA", Path(__file__).parents[2] / "shared" / "data"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--machines", type=int, nargs="+", required=True)
    parser.add_argument("--bandwidth", type=parse_bandwidth, nargs="+", required=True)
    parser.add_argument("--straight", action="store_true", help="one machine for each stage")
    parser.add_argument("--compression", type=float, default=1.0)
    parser.add_argument("--no-transfers", action="store_true")
    parser.add_argument("--memory", type=parse_bytes, help="of a machine, for example 16GB")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds, for each file")
    asked = parser.parse_args()
    network = Network(
        machines=tuple(asked.machines),
        bandwidths=tuple(asked.bandwidth),
        straight=asked.straight,
        compression=None if asked.no_transfers else asked.compression,
        memory_bytes=asked.memory,
    )
    try:
        for path in asked.files:
            print(json.dumps(row(path, network, asked.time_limit)), flush=True)
    except AutopartError as error:
        parser.exit(error.exit_code, f"{error}\n")


def row(path: Path, network: Network, time_limit: float) -> dict[str, object]:
    """What is printed of one file."""
    graph = import_profile("pipedream", path).graph
    began = time.process_time()
    plan = solve(graph, network, time_limit=time_limit)
    seconds = time.process_time() - began
    return {
        "instance": str(path),
        "objective": plan.objective,
        "lower_bound": plan.lower_bound,
        "solve_seconds": seconds,
        "stages": _stages(graph, plan),
        **_all_sends(graph, network, plan, time_limit),
        "downsets": plan.num_downsets,
        **_peer(path, network),
    }


def _stages(graph: LayerGraph, plan: NetworkPlan) -> list[dict[str, object]]:
    stages: list[dict[str, object]] = []
    for number, part in enumerate(plan.parts):
        for inner in part.inner:
            levels = {
                "outer_stage": number,
                "outer_replicas": part.replicas,
                "inner_replicas": inner.replicas,
            }
            stages.append(_stage(graph, inner, part.replicas * inner.replicas) | levels)
        if not part.inner:
            stages.append(_stage(graph, part, part.replicas))
    return stages


def _stage(graph: LayerGraph, part: Part, replicas: int) -> dict[str, object]:
    nodes = [graph.layers[at].name for at in part.layers]
    return {"nodes": nodes, "replicas": replicas, "kind": "accelerator"}


def _all_sends(
    graph: LayerGraph, network: Network, plan: NetworkPlan, time_limit: float
) -> dict[str, object]:
    same = score(graph, network, plan.parts, all_sends=True)
    if same == plan.objective:
        return {
            "all_sends": same,
            "all_sends_optimum": same,
            "all_sends_lower_bound": plan.lower_bound,
        }
    best = solve(graph, network, all_sends=True, time_limit=time_limit)
    return {
        "all_sends": same,
        "all_sends_optimum": min(same, best.objective),
        "all_sends_lower_bound": best.lower_bound,
    }


def _peer(path: Path, network: Network) -> dict[str, object]:
    try:
        runs = json.loads((DATA / "baselines.json").read_text())["pipedream"]
    except (OSError, KeyError):
        return {}
    name = path.parent.name if path.name == "graph.txt" else path.stem
    for run in runs:
        memory = run["memory_size"] if run["memory_constraint"] else None
        same = (
            run["profile"].removeprefix("compressed:") == name
            and tuple(run["num_machines"]) == network.machines
            and all(map(math.isclose, run["bandwidths"], network.bandwidths))
            and run["straight_pipeline"] == network.straight
            and run["activation_compression_ratio"] == network.compression
            and memory == network.memory_bytes
            and not run["use_fewer_machines"]
        )
        if same:
            return {
                "peer_objective": run["pipeline_time_s"],
                "peer_seconds": run["user_s"],
                "peer_timed_out": run["timed_out"],
            }
    return {}


if __name__ == "__main__":
    main()
