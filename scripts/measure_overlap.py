"""The hidden share of gradient syncs, predicted and measured: two ranks with a slow link between them.

    sudo python scripts/measure_overlap.py zoo:gpt2-tiny --bandwidth 25MB/s --bucket 512KiB

1. Make two network namespaces, shape the link between them, and probe it (as measure_two_hosts.py).
2. Profile the model, and solve one stage with two replicas under `--sync overlap`.
3. Run the plan in turns with `--sync end` and with `--sync overlap`.

The measured hidden share is the time that the step gets shorter by, over the sync's seconds at the
end. Beside it stands the share that `autopart run --sync overlap` reports.
"""

import argparse
import signal
import statistics
import sys
import tempfile
from pathlib import Path

import msgspec
import torch
from measure_two_hosts import across, probe_hosts, say, two_hosts

import autopart
from autopart.cost.stage_syncs import exposed_time
from autopart.records.run_result import RunResult
from autopart.units import format_time, parse_bandwidth, parse_bytes, parse_time


def main() -> None:
    asked = _options()
    # An exit, unlike the default, runs the `finally` that removes the namespaces.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as name, two_hosts(asked) as hosts:
        folder = Path(name)
        cluster = (
            autopart.load_cluster(asked.cluster)
            if asked.cluster
            else probe_hosts(hosts, folder, asked, ["--no-network"]).cluster
        )
        plan = _plan(cluster, asked)
        path = folder / "plan.json"
        autopart.save_plan(plan, path)
        runs: dict[str, list[RunResult]] = {"end": [], "overlap": []}
        for _ in range(asked.rounds):
            for sync, results in runs.items():
                words = ["run", str(path), asked.model, "--steps", str(asked.steps)]
                printed = across(hosts, [*words, "--sync", sync, "--json"], folder, asked)
                results.append(msgspec.json.decode(printed, type=RunResult))
    _report(plan, runs)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="zoo:gpt2-tiny")
    parser.add_argument("--bandwidth", type=parse_bandwidth, default=parse_bandwidth("25MB/s"))
    parser.add_argument("--cluster", help="a file of an earlier probe over such a link")
    parser.add_argument("--latency", type=parse_time, default=0.0, help="needs netem")
    parser.add_argument("--bucket", type=parse_bytes, default=parse_bytes("512KiB"))
    parser.add_argument("--microbatch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.set_defaults(ranks_per_host=1)
    return parser.parse_args()


def _plan(cluster: autopart.Cluster, asked: argparse.Namespace) -> autopart.Plan:
    torch.set_num_threads(1)
    profile = autopart.profile_model(asked.model, microbatch_size=asked.microbatch_size)
    return autopart.solve(
        profile,
        cluster,
        num_microbatches=2,
        num_stages=1,
        num_replicas=2,
        optimizer="adamw",
        sync="overlap",
        bucket_bytes=asked.bucket,
    )


def _report(plan: autopart.Plan, runs: dict[str, list[RunResult]]) -> None:
    (sync,), stage = plan.prediction.syncs, plan.prediction.stages[0]
    assert sync.parts is not None
    visible = exposed_time(sync, split=False) + sync.parts.slows_backward
    say(
        f"predicted: backward {format_time(stage.backward_time)}, sync {format_time(sync.time)} in "
        f"{sync.parts.buckets:.0f} buckets, hidden {1 - visible / sync.time:.0%}"
    )
    steps = {name: statistics.median(r.step_time for r in own) for name, own in runs.items()}
    at_end = statistics.median(r.ranks[0].sync_time for r in runs["end"])
    backward = statistics.median(r.stages[0].backward_time for r in runs["end"])
    saved = steps["end"] - steps["overlap"]
    say(
        f"measured: step {format_time(steps['end'])} with the sync at its end, "
        f"{format_time(steps['overlap'])} overlapped; backward {format_time(backward)}, sync at the end "
        f"{format_time(at_end)}, hidden {saved / at_end:.0%}"
    )
    shares = [
        rank.hidden_sync_time / (rank.hidden_sync_time + rank.sync_time)
        for result in runs["overlap"]
        for rank in result.ranks
        if rank.hidden_sync_time is not None
    ]
    say(f"reported by autopart run: hidden {statistics.median(shares):.0%}")


if __name__ == "__main__":
    main()
