"""A probe from start to result, on ranks from torchrun or on ranks that it starts itself."""

# pyright: reportPrivateImportUsage=false

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import torch

from autopart.errors import RunError, UsageError
from autopart.records.known_gpus import GPUS
from autopart.records.probe import Probe
from autopart.runtime.job.launch import host_store, rank_environment
from autopart.runtime.job.world import World, is_rank, read_world
from autopart.runtime.measuring.threads import use_threads
from autopart.runtime.probing.environment import differing, nccl_version, own_environment
from autopart.runtime.probing.links import measure_links, pairs_across, pairs_inside
from autopart.runtime.probing.memory import (
    measure_copies,
    memory_of_node,
    memory_of_rank,
    reserve_of_rank,
)
from autopart.runtime.probing.network import measure_network
from autopart.runtime.probing.overhead import measure_overhead
from autopart.runtime.probing.ranks import ProbeSettings, Ranks, joined, longest
from autopart.runtime.probing.slowdown import measure_slowdown
from autopart.runtime.profiling.devices import describe_device
from autopart.stopping.signals import held_signals, temporary_folder

ONE_NODE = (
    "starts all ranks on one node, which has no rails to measure: leave --network out, or start "
    "ranks on several nodes with torchrun --nnodes 2"
)
_POLL_SECONDS = 0.1


def probe_cluster(
    *,
    num_ranks: int | None = None,
    device: str | None = None,
    threads: int = 1,
    timeout: float = 60.0,
    network: bool | None = None,
    limit: float = 120.0,
) -> Probe | None:
    """Measure all figures that the cost model needs about a cluster.

    It runs as one rank if torchrun started this process, else on `num_ranks` processes that it
    starts here. Returns the probe on rank 0, and None on other ranks. `timeout` is the limit in
    seconds for one wait on another rank. `network` says whether all sends and collectives between
    ranks are measured, for about `limit` seconds; without it they are where there are several
    nodes. The whole probe ends within ten timeouts and two limits. Raises UsageError where nobody
    starts ranks, a GPU is missing, or one node has a network to measure; RunError where any rank is
    gone or was started differently.
    """
    asked = ProbeSettings(device, threads, timeout, network, limit)
    if num_ranks is None:
        if not is_rank(os.environ):
            raise UsageError(
                "a probe measures between ranks: start them with --ranks 2 on this machine, or with "
                "torchrun --nnodes 2 --nproc-per-node 4 -m autopart probe on each node"
            )
        return probe_as_rank(read_world(os.environ), asked)
    if num_ranks < 2:
        raise UsageError(f"--ranks {num_ranks}: sends need at least 2 ranks")
    if is_rank(os.environ):
        raise UsageError("torchrun has started the ranks already; leave --ranks out")
    if network:
        raise UsageError(f"--ranks {num_ranks} {ONE_NODE}")
    return _locally(num_ranks, asked)


def probe_as_rank(world: World, asked: ProbeSettings) -> Probe | None:
    """Run one rank's part. Returns the result on rank 0."""
    one_node = world.local_size == world.size
    if asked.network and one_node:
        raise UsageError(f"torchrun {ONE_NODE}")
    use_threads(asked.threads)
    with joined(world, asked) as ranks:
        with_network = not one_node if asked.network is None else asked.network
        return _measured(ranks, asked.limit if with_network else None)


def _measured(ranks: Ranks, limit: float | None) -> Probe | None:
    """Measure everything; the network too, within `limit` seconds, unless this is None."""
    reserve = max(ranks.gather(reserve_of_rank(ranks), "the others' memory"))
    nodes = [range(n * ranks.per_node, (n + 1) * ranks.per_node) for n in range(ranks.num_nodes)]
    ranks.tell("messages inside a node, and between neighbours")
    intra = measure_links(ranks, pairs_inside(ranks), nodes)
    inter = measure_links(ranks, pairs_across(ranks), [range(ranks.size)])
    network = None if limit is None else measure_network(ranks, limit)
    ranks.tell("compute, copies to the host, and the cost of an action")
    slowdown, of_copies = measure_slowdown(ranks)
    host = measure_copies(ranks)
    overhead = measure_overhead(ranks)
    memory = min(ranks.gather(memory_of_rank(ranks), "the others' memory"))
    different = differing(ranks)
    if ranks.rank != 0:
        return None
    kind = "cuda" if ranks.device.type == "cuda" else "cpu"
    name = describe_device(kind, None).name
    return Probe(
        device=kind,
        device_name=name,
        gpu="cpu" if kind == "cpu" else _known_name(name),
        backend=ranks.backend,
        num_nodes=ranks.num_nodes,
        gpus_per_node=ranks.per_node,
        intra_node=intra,
        inter_node=inter,
        host=host,
        slowdown=slowdown,
        slowdown_of_copies=of_copies,
        action_overhead=overhead,
        memory_bytes=memory,
        reserve_bytes=reserve,
        host_memory_bytes=memory_of_node(),
        network=network,
        torch=str(torch.__version__),
        nccl=nccl_version(ranks.device),
        environment=own_environment(),
        environment_differs=different,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _known_name(name: str) -> str:
    return next((gpu.name for gpu in GPUS.values() if name in gpu.cuda_names), name)


def _locally(num_ranks: int, asked: ProbeSettings) -> Probe:
    store = host_store()
    options = msgspec.json.encode(asked).decode()
    with temporary_folder("autopart-probe-") as folder:
        result = folder / "probe.json"
        module = ["-m", "autopart.runtime.probing.rank_process"]
        command = [sys.executable, *module, options, str(result)]
        ranks: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(num_ranks):
                environment = rank_environment(rank, num_ranks, store.port)
                environment["TMPDIR"] = str(folder)
                with held_signals():
                    ranks.append(_started(command, environment, folder / f"rank-{rank}.txt"))
            _wait(ranks, folder, time.monotonic() + longest(asked) + asked.timeout)
            return msgspec.json.decode(result.read_bytes(), type=Probe)
        finally:
            with held_signals():
                _kill(ranks)


def _started(
    command: list[str], environment: Mapping[str, str], output: Path
) -> "subprocess.Popen[bytes]":
    with output.open("wb") as file:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait(ranks: "list[subprocess.Popen[bytes]]", folder: Path, until: float) -> None:
    """Wait until all ranks have ended well. Otherwise raise RunError with one rank's last words."""
    while any(process.poll() is None for process in ranks) or any(p.returncode for p in ranks):
        dead = [rank for rank, process in enumerate(ranks) if process.poll()]
        if dead:
            # A killed rank leaves no words, and the others only miss it: its negative code comes
            # first.
            rank = min(dead, key=lambda r: ranks[r].returncode)
            raise RunError(_last_words(rank, ranks[rank].returncode, folder))
        if time.monotonic() > until:
            raise RunError("the ranks of the probe did not end in time; raise --timeout")
        time.sleep(_POLL_SECONDS)


def _last_words(rank: int, code: int, folder: Path) -> str:
    if code < 0:
        return f"rank {rank} was killed by {signal.Signals(-code).name}"
    lines = (folder / f"rank-{rank}.txt").read_text(errors="replace").splitlines()
    said = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
    return f"rank {rank} ended with exit code {code}; it said last: {said.removeprefix('error: ')}"


def _kill(ranks: "list[subprocess.Popen[bytes]]") -> None:
    for process in ranks:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
