"""A rank that dies in a probe under torchrun is named with its host."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import distributed

from autopart.runtime.engine.failures import LostRank
from autopart.runtime.probing.links import own_group
from autopart.runtime.probing.ranks import Ranks


def free_port() -> int:
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def started_node(folder: Path, node: int, port: int) -> "subprocess.Popen[bytes]":
    """Start one of two nodes with a rank each, on this machine."""
    words = ["--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(node)]
    words += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    with (folder / f"node-{node}.txt").open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *words, "-m", "autopart", "probe"],
            cwd=folder,
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def rank_process(agent: int, until: float) -> int:
    """Return the process of the rank that this node's torchrun has started."""
    while time.monotonic() < until:
        for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
            if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes():
                return int(child)
        time.sleep(0.1)
    raise AssertionError("the rank was not started")


@pytest.mark.slow
def test_a_rank_killed_on_another_node_is_named_with_its_host(tmp_path: Path) -> None:
    port, until = free_port(), time.monotonic() + 600
    nodes = [started_node(tmp_path, node, port) for node in range(2)]
    said = tmp_path / "node-0.txt"
    try:
        lost = rank_process(nodes[1].pid, until)
        while "all-gather" not in said.read_text() and time.monotonic() < until:
            time.sleep(0.1)
        os.kill(lost, signal.SIGKILL)
        assert nodes[0].wait(until - time.monotonic()) != 0
    finally:
        for node in nodes:
            node.kill()
            node.wait(60)
    told = [line for line in said.read_text().splitlines() if line.startswith("error: ")]
    assert len(told) == 1, said.read_text()
    assert told[0].startswith(f"error: rank 1 on host {socket.gethostname()} is gone")
    assert not (tmp_path / "cluster.json").exists()


def test_a_rank_that_dies_while_groups_are_made_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(ranks: list[int]) -> None:
        raise RuntimeError("Gloo connectFullMesh failed with Connection closed by peer")

    monkeypatch.setattr(distributed, "new_group", closed)
    with pytest.raises(LostRank, match="a group of ranks"):
        own_group(Ranks(0, 2, 1, torch.device("cpu"), "gloo"), [[0, 1]])
