"""Each rule shards what it says, and the ranks together have the model's loss and gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from autopart.runtime.sharding.check import check_shards
from autopart.runtime.sharding.collectives import copy, gather, reduce, scatter
from autopart.runtime.sharding.shard import ShardedGraph
from autopart.runtime.sharding.states import ParameterShard
from tests.support.runtime.sharded_models import (
    Attention,
    Case,
    ColumnMean,
    Gated,
    HeadNorm,
    MovedWeights,
    Parallel,
    Tied,
    small_model,
)

pytestmark = pytest.mark.slow

ROUNDING = 1e-11
"""Largest relative difference in float64."""


def checked(case: Case, degree: int, *, sequence_parallel: bool = False) -> ShardedGraph:
    sharded = case.sharded(degree, sequence_parallel=sequence_parallel)
    found = check_shards(sharded, case.leaves)
    assert found.dtype == torch.float64
    assert found.loss_error < ROUNDING and found.gradient_error < ROUNDING, found
    return sharded


def count(sharded: ShardedGraph, target: Callable[..., object]) -> int:
    return sum(node.target is target for node in sharded.graph.nodes)


def whole(sharded: ShardedGraph) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in sharded.whole_operations:
        for name in one.parameters:
            found[name] = f"{found.get(name, '')} {one.operation}: {one.reason}"
    return found


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("kind", ["plain", "written out", "fused view", "fused split"])
def test_attention_is_sharded_by_heads(kind: str, sequence_parallel: bool) -> None:
    sharded = checked(small_model(Attention(kind)), 2, sequence_parallel=sequence_parallel)
    names = ["fused"] if kind.startswith("fused") else ["query", "key", "value"]
    parts = (16, 16, 16) if kind.startswith("fused") else ()
    for name in names:
        assert sharded.shards[f"{name}.weight"] == ParameterShard(0, parts)
        assert sharded.shards[f"{name}.bias"] == ParameterShard(0, parts)
    assert sharded.shards["out.weight"] == ParameterShard(1)
    assert "out.bias" not in sharded.shards
    assert count(sharded, scatter if sequence_parallel else reduce) == 1


def test_a_fused_projection_of_unequal_parts_shards_each_part() -> None:
    sharded = checked(small_model(Attention("fused split", 4, 2)), 2)
    assert sharded.shards["fused.weight"] == ParameterShard(0, (16, 8, 8))


@pytest.mark.parametrize("kind", ["plain", "repeated"])
def test_ranks_share_a_key_value_head_where_there_are_fewer(kind: str) -> None:
    sharded = checked(small_model(Attention(kind, 8, 2)), 4)
    assert sharded.shards["key.weight"] == ParameterShard(0, (), 2)
    assert sharded.shards["query.weight"] == ParameterShard(0)
    assert not sharded.whole_operations


def test_attention_whose_heads_do_not_divide_stays_whole_and_the_reason_is_told() -> None:
    model = nn.Sequential(Attention("plain", 3, 3), Gated())
    sharded = checked(small_model(model), 2)
    assert not {f"0.{name}.weight" for name in ("query", "key", "value")} & set(sharded.shards)
    assert "1.down.weight" in sharded.shards
    reason = whole(sharded)["0.key.weight"]
    assert "3" in reason and "2 does not divide" in reason and "degrees 3 would do" in reason


def test_a_gate_and_its_value_are_two_parts_and_their_scale_is_sharded_alike() -> None:
    sharded = checked(small_model(Gated()), 2)
    assert sharded.shards["both.weight"] == ParameterShard(0, (64, 64))
    assert sharded.shards["scale"] == ParameterShard(0)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_branches_that_are_added_share_their_collectives(sequence_parallel: bool) -> None:
    model = nn.Sequential(Parallel(), Parallel())
    sharded = checked(small_model(model), 4, sequence_parallel=sequence_parallel)
    if sequence_parallel:
        # The second block and the loss gather; the first block's input is whole.
        assert (count(sharded, scatter), count(sharded, gather)) == (2, 2)
    else:
        assert (count(sharded, reduce), count(sharded, copy)) == (2, 2)


def test_norms_within_a_head_stay_local_and_a_softmax_over_columns_stays_whole() -> None:
    sharded = checked(small_model(HeadNorm()), 2)
    assert {"up.weight", "down.weight"} <= set(sharded.shards)
    assert "softmax over the sharded dimension" in whole(sharded)["router.weight"]
    assert sharded.partial_parameters == {"norm.weight", "norm.bias"}


@pytest.mark.parametrize("degree", [2, 4])
def test_a_parameter_with_moved_dimensions_is_sharded_as_its_product_asks(degree: int) -> None:
    sharded = checked(small_model(MovedWeights()), degree)
    assert sharded.shards == {"up": ParameterShard(0), "middle": ParameterShard(1)}
    # A sum reads all of the last one.
    assert "down" in whole(sharded)


def test_a_mean_over_sharded_columns_is_a_partial_sum() -> None:
    sharded = checked(small_model(ColumnMean()), 2)
    assert sharded.shards["up.weight"] == ParameterShard(0)


@pytest.mark.parametrize("degree", [2, 4])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_an_embedding_tied_to_the_head_is_sharded_by_vocabulary(
    degree: int, sequence_parallel: bool
) -> None:
    sharded = checked(small_model(Tied()), degree, sequence_parallel=sequence_parallel)
    assert sharded.shards["tokens.weight"] == ParameterShard(0)
    is_partial = "positions" in sharded.partial_parameters
    assert is_partial == sequence_parallel  # each rank adds its part of the sequence


def test_an_embedding_with_a_padding_row_stays_whole_and_so_does_its_head() -> None:
    sharded = checked(small_model(Tied(padding=0)), 2)
    assert "tokens.weight" not in sharded.shards
    assert "padding row" in whole(sharded)["tokens.weight"]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_targets_that_are_ignored_count_nothing_in_a_sharded_loss(reduction: str) -> None:
    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        some = target.flatten().masked_fill(target.flatten() < 40, -7)
        logits = output.flatten(0, 1)
        return functional.cross_entropy(logits, some, ignore_index=-7, reduction=reduction)

    sharded = checked(small_model(Tied(), loss), 4)
    assert "tokens.weight" in sharded.shards


def test_a_smoothed_loss_keeps_the_head_whole() -> None:
    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits = output.flatten(0, 1)
        return functional.cross_entropy(logits, target.flatten(), label_smoothing=0.1)

    sharded = checked(small_model(Tied(), loss), 2)
    assert "tokens.weight" not in sharded.shards
    assert "smoothing" in whole(sharded)["tokens.weight"]
