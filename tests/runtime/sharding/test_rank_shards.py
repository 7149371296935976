"""One rank's shards: what it owes its group, and what it keeps alive."""

import gc
import weakref

import torch
from torch import fx, nn

from autopart.records.rank_group import Group
from autopart.runtime.capture.capture import Captured, capture_model
from autopart.runtime.models.model import TrainingModel
from autopart.runtime.sharding.group_graphs import GroupGraphs
from autopart.runtime.sharding.groups import LoneRank
from autopart.runtime.sharding.rank_shards import RankShards, local_part
from autopart.runtime.sharding.shard import ShardedGraph
from autopart.runtime.sharding.states import ParameterShard
from autopart.runtime.sharding.thread_ranks import ThreadRanks

WIDTH = 16


def capture() -> Captured:
    """A product that is split by columns, and one that is split by rows."""
    layers = [nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH)]
    model = TrainingModel(nn.Sequential(*layers), nn.functional.mse_loss)
    batch = ((torch.randn(4, WIDTH),), torch.randn(4, WIDTH))
    return capture_model(model, batch, granularity="module")


def test_gradients_that_ranks_hold_in_parts_are_summed() -> None:
    """Whole parameters with partial gradients, and slices that several ranks hold; no others."""
    group = ThreadRanks(4)
    sharded = ShardedGraph(
        captured=capture(),
        degree=4,
        sequence_parallel=False,
        graph=fx.Graph(),
        states={},
        layer_of={},
        shards={"shared": ParameterShard(0, copies=2), "own": ParameterShard(0)},
        partial_parameters=frozenset({"partial"}),
        whole_operations=(),
    )
    found: dict[int, dict[str, float]] = {}

    def work(rank: int) -> None:
        parameters = {n: nn.Parameter(torch.zeros(2)) for n in ("shared", "own", "partial", "none")}
        for name in ("shared", "own", "partial"):
            parameters[name].grad = torch.full((2,), 10.0**rank)
        RankShards(GroupGraphs(sharded.captured, sharded), group).sum_gradients(parameters)
        assert parameters["none"].grad is None
        found[rank] = {n: float(p.grad[0]) for n, p in parameters.items() if p.grad is not None}

    group.run(work)
    assert [found[rank]["own"] for rank in range(4)] == [1, 10, 100, 1000]
    assert [found[rank]["partial"] for rank in range(4)] == [1111] * 4
    assert [found[rank]["shared"] for rank in range(4)] == [11, 11, 1100, 1100]


def test_the_whole_weights_are_freed() -> None:
    captured = capture()
    weights = {name: weakref.ref(p) for name, p in captured.module.named_parameters()}
    names = {name: tuple(p.shape) for name, p in captured.module.named_parameters()}
    tensor = Group(tensor=2, sequence_parallel=False)
    local, shards = local_part(captured, tensor, LoneRank(2))
    del captured
    gc.collect()
    assert [name for name, weight in weights.items() if weight() is not None] == []
    # The shapes of whole tensors follow from the shards.
    parts = dict(local.module.named_parameters())
    assert parts["0.weight"].shape == (WIDTH, WIDTH) and parts["2.weight"].shape == (WIDTH, WIDTH)
    assert {name: tuple(shards.whole_shape(name, p.shape)) for name, p in parts.items()} == names
