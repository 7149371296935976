"""A probe of the network between real ranks, which stand for nodes."""

import math

import pytest
import torch

from autopart.cost.probed_network import fit_network
from autopart.errors import UsageError
from autopart.runtime.job.world import World
from autopart.runtime.probing.environment import own_environment
from autopart.runtime.probing.groups import GroupTask, tasks
from autopart.runtime.probing.probe import probe_as_rank, probe_cluster
from autopart.runtime.probing.ranks import ProbeSettings, Ranks
from tests.support.runtime import network_probes
from tests.support.runtime.rank_pool import RankPool

ENOUGH = 1e6
"""Seconds of the limit: no busy machine leaves a measurement out. Each ends by itself."""


@pytest.mark.slow
@pytest.mark.parametrize(("pool", "per_node"), [("two_ranks", 1), ("four_ranks", 2)])
def test_every_collective_and_send_is_measured_alike_on_all_ranks(
    pool: str, per_node: int, request: pytest.FixtureRequest
) -> None:
    ranks: RankPool = request.getfixturevalue(pool)
    first, *others = ranks.call(network_probes.measured, per_node, ENOUGH)
    assert all(other == first for other in others)
    todo = tasks(Ranks(0, 2 * per_node, per_node, torch.device("cpu"), "gloo"))
    groups = [task for task in todo if isinstance(task, GroupTask)]
    assert (len(first.collectives), len(first.sends)) == (len(groups), len(todo) - len(groups))
    assert first.left_out == ()
    for one in (*first.sends, *first.collectives):
        assert all(reading.time > 0.0 for reading in one.readings)
        assert one.readings[0].num_bytes == 64 << 10
    assert first.compute is not None and first.compute.alone > 0.0
    found = fit_network(first, 2, per_node, is_nccl=False)
    assert 0.0 < found.rail_bandwidth < math.inf and 1 <= found.rails <= per_node


@pytest.mark.slow
def test_without_time_the_option_is_named(two_ranks: RankPool) -> None:
    for error in two_ranks.call(network_probes.too_late, 1):
        assert error == "0 s were too short for any collective over nodes; raise --limit"


def test_one_node_has_no_rails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(
        UsageError, match="--ranks 2 starts all ranks on one node, which has no rails"
    ):
        probe_cluster(num_ranks=2, network=True)
    world = World(0, 2, 0, 2, "localhost", 1, "0", hosts_store=True, under_torchrun=True)
    asked = ProbeSettings(None, 1, 60.0, network=True, limit=10.0)
    with pytest.raises(UsageError, match="torchrun starts all ranks on one node"):
        probe_as_rank(world, asked)


def test_variables_that_change_messages_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_ALGO", "Ring")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MY_SECRET", "none of ours")
    found = own_environment()
    assert found["NCCL_ALGO"] == "Ring" and found["GLOO_SOCKET_IFNAME"] == "lo"
    assert found["OMP_NUM_THREADS"] == "1" and "MY_SECRET" not in found
