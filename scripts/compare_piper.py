"""Piper's inputs under Piper's own objective, beside Piper's published answers.

    python scripts/compare_piper.py FILE... --devices K --microbatches N --memory BYTES --bandwidth B

Limits that are not given come from the file. Prints one JSON line for each file:

    objective        Piper's time per sample: the largest time of a stage, in the file's seconds; null
                     where nothing fits, and `infeasible` says why
    lower_bound      no plan has a smaller one; equal to `objective` where it is proven optimal
    infeasible_at    the next smaller time of any stage, within which there is no plan
    solve_seconds    processor time of the solver
    stages           the file's node ids, replicas (data-parallel degree), tensor_parallel (devices per
                     replica), recompute (the nodes that do), in_flight, time, memory_bytes
    peer_*           Piper's answer to the same question, in ../shared/data/baselines.json
                     or the folder that AUTOPART_DATA names
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import msgspec

from autopart import PeerLimits, solve_peer
from autopart.errors import AutopartError, InfeasibleError
from autopart.peers.piper import file as piper
from autopart.peers.piper.charges import PiperLimits
from autopart.peers.piper.file import PiperInstance
from autopart.units import parse_bandwidth, parse_bytes

DATA = Path(os.environ.get("AUTOPART_DATA", Path(__file__).parents[2] / "shared" / "data"))


def main() -> None:
    """Compare each file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--devices", type=int)
    parser.add_argument("--microbatches", type=int)
    parser.add_argument("--memory", type=parse_bytes, help="per device, for example 8GiB")
    parser.add_argument("--bandwidth", type=parse_bandwidth, help="for example 25GB/s")
    asked = parser.parse_args()
    try:
        for path in asked.files:
            print(json.dumps(row(path, _limits(piper.read(path), asked))), flush=True)
    except AutopartError as error:
        parser.exit(error.exit_code, f"{error}\n")


def row(path: Path, limits: PiperLimits) -> dict[str, object]:
    """The line printed for one file."""
    began = time.process_time()
    found: dict[str, object]
    try:
        answer = solve_peer("piper", path, _asked(limits))
    except InfeasibleError as error:
        found = {"objective": None, "lower_bound": None, "infeasible": str(error)}
    else:
        found = {
            "objective": answer.objective,
            "lower_bound": answer.lower_bound,
            "infeasible_at": answer.infeasible_at,
            "stages": msgspec.to_builtins(answer.stages),
        }
    seconds = time.process_time() - began
    return {"instance": str(path), **found, "solve_seconds": seconds, **_peer(path, limits)}


def _asked(limits: PiperLimits) -> PeerLimits:
    return PeerLimits(
        gpus=(limits.devices,),
        bandwidths=(limits.bandwidth,),
        memory_bytes=limits.memory_bytes,
        num_microbatches=limits.microbatches,
    )


def _limits(instance: PiperInstance, asked: argparse.Namespace) -> PiperLimits:
    given = {
        "devices": asked.devices,
        "microbatches": asked.microbatches,
        "memory_bytes": asked.memory,
        "bandwidth": asked.bandwidth,
    }
    return instance.limits._replace(**{k: v for k, v in given.items() if v is not None})


def _peer(path: Path, limits: PiperLimits) -> dict[str, object]:
    try:
        runs = json.loads((DATA / "baselines.json").read_text())["piper"]
    except (OSError, KeyError):
        return {}
    for run in runs:
        same = (
            run["input"] == path.stem
            and not run.get("transformer_layers")
            and run["maxDevices"] == limits.devices
            and run["mbsInBatch"] == limits.microbatches
            and math.isclose(run["maxMemoryPerDevice"], limits.memory_bytes)
            and math.isclose(run["bandwidth"], limits.bandwidth)
        )
        if same:
            return {"peer_objective": run["TPS"], "peer_seconds": run["user_s"]}
    return {}


if __name__ == "__main__":
    main()
