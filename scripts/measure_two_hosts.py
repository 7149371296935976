"""Two hosts on one machine: probe the link between them, and measure the gain from knowing it.

    sudo python scripts/measure_two_hosts.py --bandwidth 25MB/s
    sudo python scripts/measure_two_hosts.py zoo:resnet-tiny --microbatch-size 16 --bandwidth 100MB/s

1. Make two network namespaces with a pair of virtual interfaces between them.
2. Shape both ends with `tc`: token buckets for the bandwidth, netem for `--latency`. Where the
   kernel has no netem, scripts/delayed_wire.py delays the frames.
3. Start `autopart probe` with torchrun in both.
4. Run two plans in turns. `autopart solve` makes the first with the probed cluster. It makes the
   second with a link between the hosts as fast as loopback.

The second plan is also priced on the probed cluster, which gives a predicted gain beside the
measured one. The namespaces are removed after success and failure. Nothing outside them changes.
"""

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from delayed_wire import delayed_wire

import autopart
from autopart.records.cluster import num_gpus
from autopart.records.probe import ProbeSummary
from autopart.records.run_result import RunResult
from autopart.units import format_bandwidth, format_time, parse_bandwidth, parse_time

ADDRESSES = ("192.0.2.1", "192.0.2.2")
"""From the block that RFC 5737 reserves for documentation, so no real host has them."""
INTERFACE = "between"
PORT = 29511
LONGEST_PROGRAM = 600.0
"""Seconds that a program on both hosts may take."""
BURST = 32 << 10
"""Bytes that a token bucket passes at once."""


class Host(NamedTuple):
    """One network namespace."""

    namespace: str
    address: str


def main() -> None:
    asked = _options()
    _check_tools()
    # An exit, unlike the default, runs the `finally` that removes the namespaces.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as folder, two_hosts(asked) as hosts:
        probed = probe_hosts(hosts, Path(folder), asked, ["--no-network"])
        plans = _plans(probed.cluster, asked)
        steps: dict[str, list[float]] = {name: [] for name in plans}
        for _ in range(asked.rounds):
            for name, plan in plans.items():
                steps[name].append(_run(hosts, plan, Path(folder), asked).step_time)
    _report(asked, probed, plans, {name: statistics.median(s) for name, s in steps.items()})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="zoo:resnet-tiny")
    parser.add_argument("--bandwidth", type=parse_bandwidth, default=parse_bandwidth("25MB/s"))
    parser.add_argument("--latency", type=parse_time, default=0.0, help="in one direction")
    parser.add_argument("--ranks-per-host", type=int, default=1)
    parser.add_argument("--microbatch-size", type=int, default=16)
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    return parser.parse_args()


def _check_tools() -> None:
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        sys.exit(f"error: {' and '.join(missing)} not found; install iproute2")
    if os.geteuid() != 0:
        sys.exit("error: network namespaces need root; use sudo, or unshare --user --map-root-user")


@contextlib.contextmanager
def two_hosts(asked: argparse.Namespace) -> Generator[tuple[Host, Host]]:
    """Make two namespaces with a shaped link between them, and remove them afterwards."""
    names = [f"autopart-{os.getpid()}-{letter}" for letter in "ab"]
    hosts = tuple(Host(name, address) for name, address in zip(names, ADDRESSES, strict=True))
    try:
        for host in hosts:
            _do("ip", "netns", "add", host.namespace)
        first, second = hosts
        with _wire(first, second, asked):
            for host in hosts:
                inside = ("ip", "-n", host.namespace)
                _do(*inside, "address", "add", f"{host.address}/30", "dev", INTERFACE)
                _do(*inside, "link", "set", INTERFACE, "up")
                _do(*inside, "link", "set", "lo", "up")
                _shape(host, asked)
            yield first, second
    finally:
        for host in hosts:
            _remove(host)


def _wire(
    first: Host, second: Host, asked: argparse.Namespace
) -> contextlib.AbstractContextManager[None]:
    """Join the hosts: a pair of virtual interfaces, or a wire that delays where `tc` cannot."""
    if asked.latency and not _can_delay(first):
        names = (first.namespace, second.namespace)
        return delayed_wire(names, INTERFACE, asked.latency)
    _do(
        *("ip", "link", "add", INTERFACE, "netns", first.namespace, "type", "veth"),
        *("peer", "name", INTERFACE, "netns", second.namespace),
    )
    return contextlib.nullcontext()


def _can_delay(host: Host) -> bool:
    """Whether the kernel has netem."""
    tc = ("tc", "-n", host.namespace, "qdisc")
    trial = [*tc, "add", "dev", "lo", "root", "netem", "delay", "1us"]
    if subprocess.run(trial, capture_output=True).returncode:
        return False
    _do(*tc, "delete", "dev", "lo", "root")
    return True


def _shape(host: Host, asked: argparse.Namespace) -> None:
    tc = ("tc", "-n", host.namespace, "qdisc", "add", "dev", INTERFACE)
    parent: tuple[str, ...] = ("root",)
    if asked.latency and _can_delay(host):
        delay = f"{asked.latency * 1e6:.0f}us"
        _do(*tc, "root", "handle", "1:", "netem", "delay", delay, "limit", "100000")
        parent = ("parent", "1:1")
    rate = f"{asked.bandwidth * 8:.0f}bit"
    _do(*tc, *parent, "tbf", "rate", rate, "burst", str(BURST), "latency", "1s")


def _remove(host: Host) -> None:
    """End all processes in a namespace and delete it. A missing namespace is no error."""
    listed = subprocess.run(["ip", "netns", "pids", host.namespace], capture_output=True, text=True)
    for pid in listed.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), 9)
    subprocess.run(["ip", "netns", "delete", host.namespace], capture_output=True)


def _do(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(words)}: {done.stderr.strip() or done.returncode}")


def across(
    hosts: Sequence[Host], arguments: Sequence[str], folder: Path, asked: argparse.Namespace
) -> bytes:
    """Run `autopart …` on all ranks of both hosts, and return the output of rank 0."""
    say(f"autopart {' '.join(arguments)}")
    return on_both(hosts, ["-m", "autopart", *arguments], folder, asked)


def on_both(
    hosts: Sequence[Host], words: Sequence[str], folder: Path, asked: argparse.Namespace
) -> bytes:
    """Run a program on all ranks of both hosts with torchrun, and return the output of rank 0."""
    started: list[subprocess.Popen[bytes]] = []
    for place, host in enumerate(hosts):
        command = [
            *("ip", "netns", "exec", host.namespace, sys.executable, "-m", "torch.distributed.run"),
            *("--nnodes", "2", "--nproc-per-node", str(asked.ranks_per_host)),
            *("--node-rank", str(place), "--master-addr", hosts[0].address),
            *("--master-port", str(PORT), *words),
        ]
        environment = os.environ | {"GLOO_SOCKET_IFNAME": INTERFACE, "OMP_NUM_THREADS": "1"}
        with (folder / f"host-{place}.txt").open("wb") as errors:
            started.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors)
            )
    try:
        printed = [process.communicate(timeout=LONGEST_PROGRAM)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    if any(process.returncode for process in started):
        said = "".join((folder / f"host-{p}.txt").read_text() for p in range(len(hosts)))
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        sys.exit(lines[0] if lines else said)
    return printed[0]


def say(*lines: str) -> None:
    for line in lines:
        sys.stderr.write(f"{time.strftime('%X')} {line}\n")


def probe_hosts(
    hosts: Sequence[Host], folder: Path, asked: argparse.Namespace, options: Sequence[str]
) -> ProbeSummary:
    words = ["probe", "--json", "--output", str(folder / "cluster.json"), *options]
    printed = across(hosts, words, folder, asked)
    return msgspec.json.decode(printed, type=ProbeSummary)


def _plans(cluster: autopart.Cluster, asked: argparse.Namespace) -> dict[str, autopart.Plan]:
    """The plans with and without knowledge of the link, both priced on the probed cluster."""
    torch.set_num_threads(1)
    profile = autopart.profile_model(asked.model, microbatch_size=asked.microbatch_size)
    say(f"profiled {len(profile.graph.layers)} layers", *profile.warnings)
    stages = num_gpus(cluster)
    loopback = autopart.cluster_of("cpu", gpus=stages).intra_node
    ignored = msgspec.structs.replace(cluster, inter_node=loopback)
    demands = {
        "num_microbatches": asked.microbatches,
        "num_stages": stages,
        "num_replicas": 1,
        "schedule": "1f1b",
    }
    blind = autopart.solve(profile, ignored, **demands)
    # Pins fix the blind plan's stages, so that only the prices change.
    pins = {name: at for at, stage in enumerate(blind.stages) for name in stage.layers}
    return {
        "knows the link": autopart.solve(profile, cluster, **demands),
        "ignores it": autopart.solve(profile, cluster, pins=pins, **demands),
    }


def _run(
    hosts: Sequence[Host], plan: autopart.Plan, folder: Path, asked: argparse.Namespace
) -> RunResult:
    file = folder / "plan.json"
    autopart.save_plan(plan, file)
    arguments = ["run", str(file), asked.model, "--steps", str(asked.steps), "--json"]
    return msgspec.json.decode(across(hosts, arguments, folder, asked), type=RunResult)


def _report(
    asked: argparse.Namespace,
    probed: ProbeSummary,
    plans: dict[str, autopart.Plan],
    measured: dict[str, float],
) -> None:
    found = probed.cluster.inter_node
    lines = [
        f"link: {format_bandwidth(asked.bandwidth)} and {format_time(asked.latency)} asked for; "
        f"{format_bandwidth(found.bandwidth)} and {format_time(found.latency)} found, all-reduces "
        f"{found.all_reduce_factor:.2f} times the ring, sends "
        f"{'beside' if probed.cluster.sends_overlap else 'not beside'} compute",
        *(f"note: {note}" for note in probed.notes),
    ]
    for name, plan in plans.items():
        layers = " | ".join(str(len(stage.layers)) for stage in plan.stages)
        sends = ", ".join(format_time(stage.send_time) for stage in plan.prediction.stages[:-1])
        lines.append(
            f"{name:15} {layers} layers, sends {sends}: predicted "
            f"{format_time(plan.prediction.step_time)}, measured {format_time(measured[name])}"
        )
    knows, ignores = (plan.prediction.step_time for plan in plans.values())
    of_run = measured["ignores it"] / measured["knows the link"]
    lines.append(
        f"gain: {ignores / knows:.3f} times predicted, {of_run:.3f} times measured "
        f"({of_run / (ignores / knows) - 1:+.1%})"
    )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
