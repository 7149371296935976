"""PipeDream's profiles under PipeDream's own objective, beside its optimizer's answers.

    python scripts/compare_pipedream.py FILE... --machines N [N2] --bandwidth B [B2] [--straight]

Two levels: GPUs per node, then nodes, each with the bandwidth of its links. Transfers count as with
PipeDream's --activation_compression_ratio 1: --compression is that ratio, --no-transfers leaves it out.
--memory is its --memory_size with --use_memory_constraint. Machines may stay idle. Prints one JSON line
for each file:

    objective        seconds per minibatch on the busiest stage or link, under PipeDream's charges
    lower_bound      no plan has a smaller one; equal to `objective` where it is proven optimal
    solve_seconds    processor time of the solver
    stages           the file's node ids, replicas in all; on two levels also `outer_stage`,
                     `outer_replicas` (nodes that run the same) and `inner_replicas` (in each of them)
    all_sends        the same plan with the first stages' sends charged too, which PipeDream leaves
                     out; `all_sends_optimum` and `all_sends_lower_bound` belong to the best plan then
    downsets         of the layer graph, null where they were not all listed
    peer_*           PipeDream's answer to the same question, in ../shared/data/baselines.json or the
                     folder that AUTOPART_DATA names; `peer_objective` is null where it did not end
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import msgspec

from autopart import PeerAnswer, PeerLimits, solve_peer
from autopart.errors import AutopartError
from autopart.peers.pipedream.charges import Network
from autopart.units import parse_bandwidth, parse_bytes

DATA = Path(os.environ.get("AUTOPART_DATA", Path(__file__).parents[2] / "shared" / "data"))


def main() -> None:
    """Compare each file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--machines", type=int, nargs="+", required=True)
    parser.add_argument("--bandwidth", type=parse_bandwidth, nargs="+", required=True)
    parser.add_argument("--straight", action="store_true", help="one machine per stage")
    parser.add_argument("--compression", type=float, default=1.0)
    parser.add_argument("--no-transfers", action="store_true")
    parser.add_argument("--memory", type=parse_bytes, help="per machine, for example 16GB")
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
    """The line printed for one file."""
    limits = PeerLimits(
        gpus=network.machines,
        bandwidths=network.bandwidths,
        memory_bytes=network.memory_bytes,
        one_gpu_per_stage=network.straight,
        compression=network.compression,
        time_limit=time_limit,
    )
    began = time.process_time()
    found = solve_peer("pipedream", path, limits)
    seconds = time.process_time() - began
    return {
        "instance": str(path),
        "objective": found.objective,
        "lower_bound": found.lower_bound,
        "solve_seconds": seconds,
        "stages": msgspec.to_builtins(found.stages),
        **_all_sends(path, limits, found),
        "downsets": found.num_downsets,
        **_peer(path, network),
    }


def _all_sends(path: Path, limits: PeerLimits, found: PeerAnswer) -> dict[str, object]:
    same = found.objective_with_all_sends
    assert same is not None, "the convention has it"
    if same == found.objective:
        return {
            "all_sends": same,
            "all_sends_optimum": same,
            "all_sends_lower_bound": found.lower_bound,
        }
    best = solve_peer("pipedream", path, limits._replace(all_sends=True))
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
