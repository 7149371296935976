import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import torch

from autopart.cost.probed_cluster import fit_link
from autopart.errors import RunError, UsageError
from autopart.records.cluster import load_cluster
from autopart.runtime.engine.failures import LostRank
from autopart.runtime.probing.links import pairs_across, pairs_inside
from autopart.runtime.probing.probe import probe_cluster
from autopart.runtime.probing.ranks import Ranks, lost_ranks_reported
from autopart.runtime.probing.samples import MOST, reading, repetitions, slowest
from tests.support.places import SCHEMAS
from tests.support.runtime import probing_ranks
from tests.support.runtime.rank_pool import RankPool


def six_ranks(per_node: int) -> Ranks:
    return Ranks(0, 6, per_node, torch.device("cpu"), "gloo")


def test_pairs_inside_are_measured_at_once_and_neighbours_in_turns() -> None:
    assert pairs_inside(six_ranks(2)) == ([(0, 1), (2, 3), (4, 5)],)
    assert pairs_across(six_ranks(2)) == [[(0, 2)], [(2, 4)]]
    assert pairs_inside(six_ranks(1)) == ()
    assert pairs_across(six_ranks(1)) == [[(0, 1), (2, 3), (4, 5)], [(1, 2), (3, 4)]]
    assert pairs_across(six_ranks(6)) == []


def test_long_actions_are_measured_once_and_short_ones_not_for_ever() -> None:
    assert (repetitions(2.0), repetitions(0.5), repetitions(1e-9)) == (1, 3, MOST)


def test_the_slowest_of_several_pairs_counts() -> None:
    found = slowest([{4: [1.0, 3.0, 2.0], 8: [9.0]}, {4: [5.0, 5.0]}, {}])
    assert [(r.num_bytes, r.time) for r in found] == [(4, 5.0), (8, 9.0)]
    assert reading(4, [1.0, 2.0, 3.0]).spread == pytest.approx(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("per_node", [1, 2])
def test_messages_become_a_link_that_all_ranks_agree_on(two_ranks: RankPool, per_node: int) -> None:
    first, second = two_ranks.call(probing_ranks.link, per_node)
    assert first == second
    assert [r.num_bytes for r in first.readings] == [4, 1 << 20]
    assert (first.num_pairs, first.all_reduce_ranks) == (1, 2)
    # Time passes as told: bytes per second, and seconds for one way.
    found, told = fit_link(first.readings), probing_ranks.ToldTime
    assert found.bandwidth == pytest.approx(told.LINK.bandwidth, rel=1e-9)
    assert found.latency == pytest.approx(told.LINK.latency, rel=1e-9)
    (reduced,) = first.all_reduce
    assert (reduced.num_bytes, reduced.time) == (
        1 << 16,
        pytest.approx(told.COLLECTIVES["all_reduce"]),
    )
    assert [one.collective for one in first.collectives] == [
        "all_gather",
        "reduce_scatter",
        "all_to_all",
    ]
    for one in first.collectives:
        assert (one.ranks, one.nodes) == (2, 1 if per_node == 2 else 2)
        (own,) = one.readings
        assert own.num_bytes == 1 << 16
        assert own.time == pytest.approx(told.COLLECTIVES[one.collective])
    assert first.hidden == 0.0  # compute and messages took their times one after the other


@pytest.mark.slow
def test_ranks_that_were_started_differently_are_reported(two_ranks: RankPool) -> None:
    first, second = two_ranks.call(probing_ranks.disagreement)
    assert "rank 1 has another number of ranks on its node than rank 0: 2 instead of 1" in first
    assert "rank 0 has another" in second


def test_a_lost_rank_is_named_with_the_rank_and_the_action_that_missed_it() -> None:
    words = "rank 2 lost rank 0 in a message: closed; check that all ranks run"
    with pytest.raises(RunError, match=words), lost_ranks_reported(2):
        raise LostRank(0, "a message", "closed")
    with pytest.raises(RunError, match="rank 2 lost another rank"), lost_ranks_reported(2):
        raise LostRank(None, "an all-reduce", "closed")


@pytest.mark.slow
def test_a_machine_has_a_slowdown_copies_and_a_cost_of_an_action(two_ranks: RankPool) -> None:
    # Both ranks say the same of rank 1, which is slower.
    told = probing_ranks.ToldMachine
    for slowdowns, copies, overhead in two_ranks.call(probing_ranks.machine):
        assert slowdowns == pytest.approx((told.BLOCK_SLOWDOWN + 1, told.TRAFFIC_SLOWDOWN + 1))
        # Copies back are slower than copies out.
        assert [r.num_bytes for r in copies] == [1 << 20, 2 << 20, 4 << 20, 8 << 20]
        for r in copies:
            assert r.time == pytest.approx(2 * r.num_bytes / told.BACK)
        assert overhead == pytest.approx(2 * told.ACTION - told.LAYERS)


def test_without_ranks_the_user_is_told_how_to_start_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UsageError, match=r"--ranks 2 on this machine, or with torchrun"):
        probe_cluster()
    with pytest.raises(UsageError, match="--ranks 1: sends need at least 2"):
        probe_cluster(num_ranks=1)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="leave --ranks out"):
        probe_cluster(num_ranks=2)


def autopart_probe(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "autopart", "probe", *arguments],
        cwd=folder,
        env=os.environ | {"COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_probe_writes_the_cluster_that_it_prints(tmp_path: Path) -> None:
    out, err = autopart_probe(tmp_path, "--ranks", "2", "--json").communicate(timeout=600)
    schema = SCHEMAS / "probe-summary.json"
    document = json.loads(out)
    jsonschema.validate(document, json.loads(schema.read_text()))
    written = load_cluster(tmp_path / "cluster.json")
    assert document["cluster"]["intra_node"]["bandwidth"] == written.intra_node.bandwidth
    assert (written.gpu, written.num_nodes, written.gpus_per_node) == ("cpu", 1, 2)
    assert written.action_overhead == document["cluster"]["action_overhead"] >= 0.0
    assert written.reserve_bytes > 1 << 26
    assert "inside a node" in err and "cluster written to cluster.json" in err


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_probe_in_one_line(tmp_path: Path) -> None:
    probe = autopart_probe(tmp_path, "--ranks", "2", "--timeout", "20")
    os.kill(_rank_process(probe.pid, 1), signal.SIGKILL)
    out, err = probe.communicate(timeout=600)
    assert (probe.returncode, out) == (1, "")
    assert err == "error: rank 1 was killed by SIGKILL\n"
    assert not (tmp_path / "cluster.json").exists()


def _rank_process(starter: int, rank: int) -> int:
    """Return the process of rank `rank`, once its starter has started it."""
    until = time.monotonic() + 600
    while time.monotonic() < until:
        for child in Path(f"/proc/{starter}/task/{starter}/children").read_text().split():
            if f"\0RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes():
                return int(child)
        time.sleep(0.1)
    raise AssertionError(f"rank {rank} was not started")
