"""Stages with balanced compute, beside torchgpipe's and DeepSpeed's stages for the same layers.

    python scripts/compare_balancers.py FILE... --stages K [--format NAME] [--peer-seconds 120]

FILE is a profile by PipeDream, DAPPLE, Piper, dnn-partitioning or autopart itself. A layer weighs its
forward and backward. Prints one JSON line for each file:

    objective        milliseconds in the heaviest stage; null where there are more stages than layers
    lower_bound      no stages in any order of the layers have less; equal to `objective` where it is
                     proven optimal
    order_optimal    true: no cut of the order in which the stages stand has less (always proven)
    solve_seconds    processor time of the solver
    stages           the layers' names in the file (ids, where the file has them), in pipeline order
    peers            for torchgpipe and deepspeed, where they can be imported: the heaviest stage on the
                     file's own order and on the order of the stages, the better of the two, and
                     the processor time for both
    peer_*           the better of the peers; where none can be imported, their published answers from
                     ../shared/data/baselines.json (or the folder that AUTOPART_DATA names)
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import networkx as nx

import autopart
from autopart.errors import AutopartError, FileError, InfeasibleError
from autopart.peers.balancers.one_order import Balance
from autopart.peers.balancers.solve import solve
from autopart.peers.formats import import_profile
from autopart.records.layer_graph import LayerGraph, as_networkx
from autopart.records.profile import Profile

DATA = Path(os.environ.get("AUTOPART_DATA", Path(__file__).parents[2] / "shared" / "data"))
PEERS = ("torchgpipe", "deepspeed")
PEER_PROGRAM = Path(__file__).with_name("peer_balancers.py")
MILLISECONDS = 1e3


def main() -> None:
    """Compare each file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--stages", type=int, required=True)
    parser.add_argument("--format", help="pipedream, dapple, piper, dnn-partitioning or autopart")
    parser.add_argument("--peer-seconds", type=float, default=120.0, help="for each peer and file")
    asked = parser.parse_args()
    try:
        for path in asked.files:
            print(json.dumps(row(path, asked)), flush=True)
    except AutopartError as error:
        parser.exit(error.exit_code, f"{error}\n")


def row(path: Path, asked: argparse.Namespace) -> dict[str, object]:
    """The line printed for one file."""
    format_name = asked.format or _format(path)
    profile = _profile(path, format_name)
    weights = [
        MILLISECONDS * (la.forward_time + la.input_grad_time + la.weight_grad_time)
        for la in profile.graph.layers
    ]
    given = _file_order(path, profile.graph)
    began = time.process_time()
    try:
        found = solve(profile.graph, weights, asked.stages, [given])
    except InfeasibleError as error:
        return {"instance": str(path), "objective": None, "infeasible": str(error)}
    seconds = time.process_time() - began
    return {
        "instance": str(path),
        "objective": found.bottleneck,
        "lower_bound": found.lower_bound,
        "order_optimal": True,
        "solve_seconds": seconds,
        "stages": list(_stages(profile, format_name, found)),
        **_peers(path, weights, (given, found.order), asked),
    }


def _format(path: Path) -> str:
    """The format of a file, from its content."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: cannot be read: {error}") from None
    if not text.lstrip().startswith("{"):
        return "dapple" if "-pbs-" in path.name else "pipedream"
    if '"TMPCs"' in text:
        return "piper"
    return "dnn-partitioning" if '"fpgaLatency"' in text else "autopart"


def _profile(path: Path, format_name: str) -> Profile:
    if format_name == "autopart":
        return autopart.load_profile(path)
    return import_profile(format_name, path)


def _file_order(path: Path, graph: LayerGraph) -> list[int]:
    """The layers in file order, as far as its edges allow.

    A layer stands where a line first begins with its name. Without such a line it stands in the
    profile's order.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    begins = {line.partition(" -- ")[0]: at for at, line in reversed(list(enumerate(lines)))}
    names = [layer.name for layer in graph.layers]
    ranks = [begins.get(name, len(lines) + at) for at, name in enumerate(names)]
    return list(nx.lexicographical_topological_sort(as_networkx(graph), key=ranks.__getitem__))


def _stages(profile: Profile, format_name: str, found: Balance) -> Iterator[dict[str, object]]:
    names = [layer.name for layer in profile.graph.layers]
    for stage in found.stages:
        nodes: list[object] = [names[layer] for layer in stage]
        if format_name == "piper":
            nodes = [int(re.findall(r"-?\d+$", names[layer])[0]) for layer in stage]
        yield {"nodes": nodes, "replicas": 1, "kind": "accelerator"}


def _peers(
    path: Path, weights: Sequence[float], orders: Sequence[Sequence[int]], asked: argparse.Namespace
) -> dict[str, object]:
    sequences = [[weights[layer] for layer in order] for order in dict.fromkeys(map(tuple, orders))]
    peers: dict[str, dict[str, float]] = {}
    for peer in PEERS:
        answer = _run(peer, sequences, asked)
        if answer is not None:
            peers[peer] = answer
    if peers:
        best = min(peers.values(), key=lambda answer: answer["objective"])
        return {
            "peers": peers,
            "peer_objective": best["objective"],
            "peer_seconds": best["seconds"],
        }
    return _published(path, asked.stages)


def _run(
    peer: str, sequences: Sequence[Sequence[float]], asked: argparse.Namespace
) -> dict[str, float] | None:
    """A peer's answer; None, and a line on stderr, where it gives none."""
    question = json.dumps({"sequences": sequences, "stages": asked.stages})
    command = [sys.executable, str(PEER_PROGRAM), peer]
    try:
        ran = subprocess.run(
            command,
            input=question,
            capture_output=True,
            text=True,
            timeout=asked.peer_seconds,
        )
    except subprocess.TimeoutExpired:
        print(f"{peer}: no answer within {asked.peer_seconds:g} s", file=sys.stderr)
        return None
    if ran.returncode:
        why = (ran.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{peer}: left out, it could not be run: {why}", file=sys.stderr)
        return None
    answer = json.loads(ran.stdout.splitlines()[-1])
    return {"objective": min(answer["largest"]), "seconds": answer["seconds"]}


def _published(path: Path, stages: int) -> dict[str, object]:
    """The peers' published answers on PipeDream's profiles, by the name of the file's folder."""
    try:
        runs = json.loads((DATA / "baselines.json").read_text())["chain-balancers"]
    except (OSError, KeyError):
        return {}
    for run in runs:
        if run["profile"] == path.parent.name and run["k"] == stages:
            known = [
                (run[f"{peer}_bottleneck_ms"], run[f"{peer}_wall_s"])
                for peer in PEERS
                if run.get(f"{peer}_bottleneck_ms") is not None
            ]
            if known:
                objective, seconds = min(known)
                return {"peer_objective": objective, "peer_seconds": seconds}
    return {}


if __name__ == "__main__":
    main()
