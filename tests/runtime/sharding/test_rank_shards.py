"""One rank's shards: whom it counts for, and what cannot be checked."""

import pytest
import torch
from torch import nn

from autopart.runtime.capture.capture import capture_model
from autopart.runtime.models.model import TrainingModel
from autopart.runtime.sharding.groups import LoneRank
from autopart.runtime.sharding.rank_shards import RankShards
from autopart.runtime.sharding.shard import shard_graph

WIDTH = 16


def shards(probability: float) -> RankShards:
    """Shards of a column-split product, a dropout and a row-split product."""
    layers = [nn.Linear(WIDTH, 2 * WIDTH), nn.Dropout(probability), nn.Linear(2 * WIDTH, WIDTH)]
    model = TrainingModel(nn.Sequential(*layers), nn.functional.mse_loss)
    batch = ((torch.randn(4, WIDTH),), torch.randn(4, WIDTH))
    captured = capture_model(model, batch, granularity="module")
    return RankShards(shard_graph(captured, 2), LoneRank(2))


@pytest.mark.parametrize(("probability", "found"), [(0.5, "1"), (0.0, None)])
def test_dropout_on_shards_is_found(probability: float, found: str | None) -> None:
    assert shards(probability).draws_on_shards() == found


def test_every_element_of_a_parameter_counts_once_in_a_group() -> None:
    rank = shards(0.0)
    names = [name for name, _ in rank.local().module.named_parameters()]
    assert len(names) == 4 and all(map(rank.counts, names))
    rank.rank = 1
    # The bias behind the row-split product is whole on each rank. The other three are sharded.
    assert [name for name in names if not rank.counts(name)] == ["2.bias"]
