"""A model's `tp_plan` decides which weights are sharded, and the ranks still equal the model."""

from pathlib import Path

import pytest
import torch
from torch import nn

from autopart.runtime.capture.capture import capture_model
from autopart.runtime.models.model import build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from autopart.runtime.sharding.check import check_shards
from autopart.runtime.sharding.shard import ShardedGraph, shard_graph
from autopart.runtime.sharding.states import ParameterShard
from tests.support.places import MODELS
from tests.support.runtime.sharded_models import Case, Gated, Tied, small_model

pytestmark = pytest.mark.slow


def checked(case: Case, degree: int = 2, *, sequence_parallel: bool = False) -> ShardedGraph:
    sharded = case.sharded(degree, sequence_parallel=sequence_parallel)
    found = check_shards(sharded, case.leaves)
    assert found.dtype == torch.float64
    assert found.loss_error < 1e-11 and found.gradient_error < 1e-11, found
    return sharded


def reason(sharded: ShardedGraph, parameter: str) -> str:
    return next(one.reason for one in sharded.whole_operations if parameter in one.parameters)


def test_a_weight_that_the_plan_replicates_stays_whole() -> None:
    model = nn.Sequential(Gated(), Gated())
    assert "0.both.weight" in checked(small_model(model)).shards
    sharded = checked(small_model(model, tp_plan={"0.*": "replicate"}))
    assert not [name for name in sharded.shards if name.startswith("0.")]
    assert {"1.both.weight", "1.down.weight"} <= set(sharded.shards)
    assert reason(sharded, "0.both.weight") == "tp_plan keeps '0.both.weight' whole"


def test_rows_that_the_plan_replicates_keep_the_columns_before_them_whole() -> None:
    plan = {"0.down": "replicate"}
    sharded = checked(small_model(nn.Sequential(Gated(), Gated()), tp_plan=plan))
    assert not [name for name in sharded.shards if name.startswith("0.")]
    assert reason(sharded, "0.both.weight") == "tp_plan keeps '0.down.weight' whole"


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("degree", [2, 4])
def test_a_weight_is_sharded_by_rows_where_the_plan_asks(
    degree: int, sequence_parallel: bool
) -> None:
    model = nn.Sequential(nn.Linear(16, 24), nn.LayerNorm(24), nn.Linear(24, 16), nn.Tanh())
    plan = {"0": "rowwise", "2": "rowwise"}
    sharded = checked(small_model(model, tp_plan=plan), degree, sequence_parallel=sequence_parallel)
    assert sharded.shards == {"0.weight": ParameterShard(1), "2.weight": ParameterShard(1)}


def test_a_table_that_the_plan_replicates_keeps_its_tied_head_whole() -> None:
    sharded = checked(small_model(Tied(), tp_plan={"head": "replicate"}))
    assert "tokens.weight" not in sharded.shards
    assert reason(sharded, "tokens.weight") == "tp_plan keeps 'tokens.weight' whole"


def test_the_plan_of_a_model_file_reaches_the_pass(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    plan = '\n\ntp_plan = {"blocks.*.up": "replicate"}\n'
    path.write_text((MODELS / "dropout.py").read_text() + plan)
    source = load_model(str(path))
    captured = capture_model(build_training_model(source), example_batch(source, 2))
    sharded = shard_graph(captured, 2)
    assert "blocks.3.up.weight" not in sharded.shards
    assert "blocks.3.out.weight" in sharded.shards
