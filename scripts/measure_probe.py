"""Hold a probed network against collectives that the probe did not measure, on two hosts.

    sudo python scripts/measure_probe.py --bandwidth 25MB/s --ranks-per-host 4

1. Make two network namespaces and shape the link between them, as measure_two_hosts.py does.
2. Probe them: `autopart probe` on all ranks of both.
3. Run collectives of 2 and 6 MiB, which the probe does not try: one group of all ranks, and groups of
   two ranks at once, one on each host.
4. Print what was asked for beside what was found, and each predicted time beside the measured one.
"""

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from measure_two_hosts import Host, on_both, probe_hosts, say, two_hosts
from torch import distributed

from autopart.cost.collectives import GroupShape, fabric_of, price_of
from autopart.records.cluster import Cluster
from autopart.records.probe import ProbeSummary
from autopart.runtime.probing.network import ALL_GATHER
from autopart.units import (
    format_bandwidth,
    format_bytes,
    format_time,
    parse_bandwidth,
    parse_time,
)

SIZES = (2 << 20, 6 << 20)
REPEATS = 5
COLLECTIVES = ("all_reduce", "all_gather")


def main() -> None:
    """Measure, or run as one rank under torchrun."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--bandwidth", type=parse_bandwidth, default=parse_bandwidth("25MB/s"))
    parser.add_argument("--latency", type=parse_time, default=0.0, help="in one direction")
    parser.add_argument("--ranks-per-host", type=int, default=4)
    parser.add_argument("--limit", type=float, default=120.0, help="the probe's, in seconds")
    parser.add_argument("--as-rank", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.as_rank:
        _run_as_rank(asked.ranks_per_host)
        return
    # An exit, unlike the default, runs the `finally` that removes the namespaces.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as name, two_hosts(asked) as hosts:
        folder = Path(name)
        probed = probe_hosts(hosts, folder, asked, ["--limit", str(asked.limit)])
        _report(asked, probed, _measured(hosts, folder, asked))


def _measured(
    hosts: tuple[Host, Host], folder: Path, asked: argparse.Namespace
) -> dict[str, float]:
    say("collectives that the probe did not measure")
    words = [str(Path(__file__)), "--as-rank", "--ranks-per-host", str(asked.ranks_per_host)]
    return json.loads(on_both(hosts, words, folder, asked))


def _run_as_rank(per_host: int) -> None:
    distributed.init_process_group("gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    found: dict[str, float] = {}
    for members in ([tuple(range(size))], [(r, r + per_host) for r in range(per_host)]):
        groups = [distributed.new_group(list(group)) for group in members]
        own = next(g for g, group in zip(groups, members, strict=True) if rank in group)
        for collective in COLLECTIVES:
            for num_bytes in SIZES:
                samples = [_seconds(collective, num_bytes, own) for _ in range(REPEATS + 1)]
                key = f"{collective} {len(members[0])} {num_bytes}"
                found[key] = statistics.median(samples[1:])
    if rank == 0:
        print(json.dumps(found))
    distributed.destroy_process_group()


def _seconds(collective: str, num_bytes: int, group: distributed.ProcessGroup) -> float:
    """Seconds on the slowest rank; all groups run it at once."""
    members = distributed.get_world_size(group)
    result = torch.zeros(num_bytes // 4 // members * members)
    own = result[: len(result) // members].clone()
    distributed.barrier()
    begin = time.perf_counter()
    if collective == "all_reduce":
        distributed.all_reduce(result, group=group)
    else:
        ALL_GATHER(result, own, group=group)
    took = torch.tensor(time.perf_counter() - begin)
    distributed.all_reduce(took, distributed.ReduceOp.MAX)
    return float(took)


def _report(asked: argparse.Namespace, probed: ProbeSummary, measured: dict[str, float]) -> None:
    network, link = probed.cluster.network, probed.cluster.inter_node
    assert network is not None
    print(
        f"asked for {format_bandwidth(asked.bandwidth)} and {format_time(asked.latency)}; found "
        f"{network.rails} x {format_bandwidth(network.rail_bandwidth)}, sends {format_time(link.latency)} + "
        f"bytes / {format_bandwidth(link.bandwidth)}, {format_time(network.hop)} per hop"
    )
    for note in probed.notes:
        print(f"note: {note}")
    print(
        "| collective | groups | size | predicted | measured | off |\n|---|---|---|---:|---:|---:|"
    )
    for key, seconds in measured.items():
        collective, ranks, num_bytes = key.split()
        predicted = _predicted(probed.cluster, collective, int(ranks), int(num_bytes))
        at_once = 1 if int(ranks) > 2 else asked.ranks_per_host
        print(
            f"| {collective.replace('_', '-')} | {at_once} of {ranks} | {format_bytes(int(num_bytes))} "
            f"| {format_time(predicted)} | {format_time(seconds)} | {seconds / predicted - 1:+.1%} |"
        )


def _predicted(cluster: Cluster, collective: str, ranks: int, num_bytes: int) -> float:
    fabric = fabric_of(cluster)
    assert fabric is not None and collective in ("all_reduce", "all_gather")
    return float(price_of(fabric, collective, GroupShape(ranks, 2, ranks // 2)).seconds(num_bytes))


if __name__ == "__main__":
    main()
