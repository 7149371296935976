"""Whole models under the expert pass: gradients, and the collectives of a block."""

from collections import Counter

import pytest

from autopart.errors import ModelError
from autopart.records.rank_group import Group
from autopart.runtime.models.attributes import lookup
from autopart.runtime.sharding.check import check_group
from autopart.runtime.sharding.counted import count_collectives
from autopart.runtime.sharding.group_graphs import GroupGraphs, graphs_of
from tests.support.runtime.sharded_models import known_model

pytestmark = pytest.mark.slow

MOE = "zoo:moe-tiny"
MIXTRAL, QWEN3 = "tests/support/models/hf_mixtral.py", "tests/support/models/hf_qwen3_moe.py"
DEEPSEEK = "tests/support/models/hf_deepseek_v3.py"
IN_CI = [
    (MOE, (2, 2, True)),
    (MIXTRAL, (2, 2, True)),
    (QWEN3, (1, 4, False)),
    (DEEPSEEK, (1, 2, False)),
]


@pytest.mark.parametrize(
    ("model", "tensor", "expert", "splits"),
    [
        pytest.param(model, *grid, marks=() if (model, grid) in IN_CI else pytest.mark.long)
        for model in (MOE, MIXTRAL, QWEN3, DEEPSEEK)
        for grid in ((1, 2, False), (1, 4, False), (2, 2, True))
    ],
)
def test_the_ranks_together_have_the_models_loss_and_gradients(
    model: str, tensor: int, expert: int, splits: bool
) -> None:
    case = known_model(model, 4)
    group = Group(tensor=tensor, expert=expert, sequence_parallel=splits)
    found = check_group(graphs_of(case.captured, group), case.leaves)
    assert found.loss_error < 1e-13 and found.gradient_error < 1e-11, found


def block_collectives(model: str, degree: int) -> tuple[GroupGraphs, Counter[tuple[str, str, int]]]:
    """The collectives of the second block: kind, phase and bytes."""
    case = known_model(model, 4)
    graphs = graphs_of(case.captured, Group(expert=degree))
    found = count_collectives(graphs, graphs.local(0))
    block = next(name for name in found if name.endswith(".1"))
    assert {one.among for one in found[block]} == {"expert"}
    return graphs, Counter((one.kind, one.phase, one.bytes) for one in found[block])


def test_dense_experts_gather_tokens_and_scatter_sums() -> None:
    graphs, kinds = block_collectives(MOE, 2)
    tokens, gates = 4 * 48 * 96 * 4, 4 * 48 * 4 * 4
    assert kinds["all_gather", "forward", tokens] == 1
    assert kinds["all_gather", "forward", gates] == 1
    assert kinds["reduce_scatter", "forward", tokens] == 1
    assert kinds["reduce_scatter", "input_grad", tokens] == 1
    assert kinds["all_gather", "input_grad", tokens] == 1
    assert graphs.experts is not None
    experts = [f"blocks.{i}.experts.{name}" for i in range(4) for name in ("up", "down")]
    assert set(graphs.experts.shards) == set(experts)
    assert graphs.experts.partial_parameters.isdisjoint(experts)


@pytest.mark.parametrize("model", [MIXTRAL, QWEN3, DEEPSEEK])
def test_sorted_entries_go_to_their_experts_and_come_back(model: str) -> None:
    """Two entries per token of 2 of the 4 samples; no other message but their counts has a token in it."""
    _, kinds = block_collectives(model, 2)
    entries = 2 * 32 * 2 * 64 * 4
    assert kinds["all_to_all", "forward", entries] == 2
    assert kinds["all_to_all", "input_grad", entries] == 2
    assert not any(kind == "reduce_scatter" for kind, _, _ in kinds)


def test_each_rank_has_its_own_experts() -> None:
    case = known_model(MIXTRAL, 4)
    graphs = graphs_of(case.captured, Group(expert=2))
    name = "model.layers.0.mlp.experts.down_proj"
    whole = lookup(case.captured.module, name)
    for rank in range(2):
        own = lookup(graphs.module(rank, {}), name)
        assert own.equal(whole[2 * rank : 2 * rank + 2])


REFUSED = [
    ("zoo:gpt2-tiny", 4, 2, "the model has no experts"),
    (MOE, 3, 2, "a microbatch has 3 samples, which 2 GPUs do not share equally.*or degree 1$"),
    (MOE, 4, 3, "'blocks.0.experts.up' has 4 experts.*use expert degree 2 or 4$"),
    (MOE, 6, 4, "a microbatch has 6 samples.*or degree 2$"),
]


@pytest.mark.parametrize(("model", "samples", "degree", "reason"), REFUSED)
def test_what_cannot_be_divided_is_refused(
    model: str, samples: int, degree: int, reason: str
) -> None:
    case = known_model(model, samples)
    with pytest.raises(ModelError, match=reason) as error:
        graphs_of(case.captured, Group(expert=degree))
    told = str(error.value)
    assert told.startswith(f"expert degree {degree}: ") and "\n" not in told
