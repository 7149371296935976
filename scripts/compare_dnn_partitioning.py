"""dnn-partitioning's inputs under its own objective, beside the published programs' answers.

    python scripts/compare_dnn_partitioning.py FILE... [--no-contiguity] [--time-limit SECONDS]

Prints one JSON line for each file; charges are in the file's own unit:

    objective        the largest charge on a device, its authors' "max-load", computed again from the
                     split and the file alone; null where nothing fits, and `infeasible` says why, or
                     where nothing was found in time, and `unsolved` says so
    lower_bound      no split has a smaller one; equal to `objective` where it is proven optimal. Where
                     the time limit came first, a line on the error output says so
    proof            the basis for the lower bound
    solve_seconds    processor time of the solver
    stages           the file's node ids and the kind of device, in pipeline order; each has one replica
    peer_*           the published program's answer: its exact one, or with --no-contiguity its
                     local search; in ../shared/data/baselines.json or the folder that AUTOPART_DATA
                     names. `peer_objective` is null where it did not end
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import msgspec

from autopart import PeerLimits, solve_peer
from autopart.errors import AutopartError, FileError, InfeasibleError

DATA = Path(os.environ.get("AUTOPART_DATA", Path(__file__).parents[2] / "shared" / "data"))

MODES = {True: ("dp", "dp_lean"), False: ("localSearch",)}
"""The published programs by contiguity; the second one counts where the first did not end."""


def main() -> None:
    """Compare each file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument(
        "--no-contiguity", action="store_true", help="a device may take several parts of the graph"
    )
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds, for each file")
    asked = parser.parse_args()
    try:
        for path in asked.files:
            found = row(path, contiguous=not asked.no_contiguity, time_limit=asked.time_limit)
            print(json.dumps(found), flush=True)
    except AutopartError as error:
        parser.exit(error.exit_code, f"{error}\n")


def row(path: Path, *, contiguous: bool, time_limit: float) -> dict[str, object]:
    """The line printed for one file."""
    limits = PeerLimits(contiguous=contiguous, time_limit=time_limit)
    began = time.process_time()
    found: dict[str, object]
    try:
        answer = solve_peer("dnn-partitioning", path, limits)
    except FileError:
        raise
    except AutopartError as error:
        why = "infeasible" if isinstance(error, InfeasibleError) else "unsolved"
        found = {"objective": None, "lower_bound": None, why: str(error)}
    else:
        if answer.lower_bound < answer.objective:
            gap = float("inf") if answer.gap is None else answer.gap
            sys.stderr.write(
                f"{path}: not proven optimal within {time_limit:g} s: at most {gap:.2%} above the "
                "best; allow more with --time-limit\n"
            )
        found = {
            "objective": answer.objective,
            "lower_bound": answer.lower_bound,
            "proof": answer.proof,
            "stages": msgspec.to_builtins(answer.stages),
        }
    seconds = time.process_time() - began
    return {"instance": str(path), **found, "solve_seconds": seconds, **_peer(path, contiguous)}


def _peer(path: Path, contiguous: bool) -> dict[str, object]:
    try:
        runs = json.loads((DATA / "baselines.json").read_text())["dnn-partitioning"]
    except (OSError, KeyError):
        return {}
    name = f"{path.parent.name}/{path.stem}"
    of_mode = {run["mode"]: run for run in runs if run["instance"] == name}
    ran = [of_mode[mode] for mode in MODES[contiguous] if mode in of_mode]
    if not ran:
        return {}
    ended = [run["max_load"] for run in ran if run["max_load"] is not None]
    return {"peer_objective": min(ended, default=None), "peer_seconds": ran[0]["user_s"]}


if __name__ == "__main__":
    main()
