"""Each rule of the context pass: the ranks together have the model's loss and gradients, or a line says why not."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
from torch import nn
from torch.nn import functional

from autopart.errors import ModelError
from autopart.records.rank_group import Group
from autopart.runtime.sharding.check import check_group
from autopart.runtime.sharding.collectives import copy
from autopart.runtime.sharding.context.causal import causal_attention
from autopart.runtime.sharding.context.exchange import gather_positions, own_positions
from autopart.runtime.sharding.context.ring import ring_attention
from autopart.runtime.sharding.context.states import CONTEXT, ContextRefused
from autopart.runtime.sharding.group_graphs import GroupGraphs, graphs_of
from autopart.runtime.sharding.nodes import operation_name
from tests.support.runtime.context_models import (
    Accumulated,
    BatchNormed,
    CausalAttention,
    Convolved,
    Decoder,
    FirstToken,
    Pooled,
    SequenceFirst,
    SortedExperts,
    SortedTokens,
    TwoAttentions,
    WrittenKeys,
)
from tests.support.runtime.sharded_models import Attention, Case, small_model

ROUNDING = 1e-11


def checked(
    case: Case, *, context: int = 2, tensor: int = 1, splits: bool = False, ring: bool = False
) -> GroupGraphs:
    exchange = "ring" if ring else msgspec.UNSET
    group = Group(tensor=tensor, context=context, sequence_parallel=splits, exchange=exchange)
    graphs = graphs_of(case.captured, group)
    found = check_group(graphs, case.leaves)
    assert found.dtype == torch.float64
    assert found.loss_error < ROUNDING and found.gradient_error < ROUNDING, found
    return graphs


def count(graphs: GroupGraphs, target: Callable[..., object]) -> int:
    assert graphs.context is not None
    nodes = graphs.context.local.module.graph.nodes
    return sum(node.target is target and node.args[-1] == CONTEXT for node in nodes)


@pytest.mark.parametrize("kind", ["fused", "masked", "written out"])
def test_attention_gathers_keys_and_values(kind: str) -> None:
    graphs = checked(small_model(Decoder(CausalAttention(kind))))
    assert count(graphs, gather_positions) == (2 if kind == "written out" else 1)
    assert count(graphs, copy) == 0


@pytest.mark.slow
@pytest.mark.parametrize("splits", [False, True])
@pytest.mark.parametrize("kind", ["fused", "masked", "written out"])
def test_attention_is_exact_with_a_tensor_degree_too(kind: str, splits: bool) -> None:
    checked(small_model(Decoder(CausalAttention(kind))), tensor=2, splits=splits)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "written out", "fused view", "fused split", "repeated"])
def test_attention_without_a_mask_is_exact(kind: str) -> None:
    shared = 2 if kind == "repeated" else 4
    checked(small_model(Attention(kind, key_value_heads=shared)), context=4)


def test_repeated_keys_are_gathered_before_they_are_repeated() -> None:
    graphs = checked(small_model(Decoder(Attention("repeated", key_value_heads=2))))
    assert graphs.context is not None
    nodes = graphs.context.local.module.graph.nodes
    sizes = [
        [one.meta["val"].shape[1] for one in node.args[0]]
        for node in nodes
        if node.target is gather_positions
    ]
    assert sizes == [[2, 2]]  # key-value heads


@pytest.mark.parametrize("kind", ["plain", "repeated", "fused split"])
def test_keys_and_values_go_around_a_ring(kind: str) -> None:
    """Repeated heads are not sent: the kernel repeats them."""
    shared = 2 if kind == "repeated" else 4
    graphs = checked(small_model(Decoder(Attention(kind, key_value_heads=shared))), ring=True)
    assert count(graphs, gather_positions) == 0 and count(graphs, ring_attention) == 1
    assert graphs.context is not None and graphs.context.gathering == {}
    (node,) = graphs.context.local.module.graph.find_nodes(
        op="call_function", target=ring_attention
    )
    assert [x.meta["val"].shape[1] for x in node.args[1:3]] == [shared] * 2


@pytest.mark.slow
@pytest.mark.parametrize(("tensor", "splits"), [(1, False), (2, False), (2, True)])
def test_a_causal_ring_is_exact_with_a_tensor_degree_too(tensor: int, splits: bool) -> None:
    case = small_model(Decoder(CausalAttention("fused")))
    checked(case, tensor=tensor, splits=splits, ring=True)


def test_what_cannot_have_a_ring_gathers_and_is_named() -> None:
    graphs = checked(small_model(Decoder(TwoAttentions())), ring=True)
    assert count(graphs, gather_positions) == 1 and count(graphs, ring_attention) == 1
    assert graphs.context is not None
    assert graphs.context.gathering == {
        "layer 'block': scaled_dot_product_attention": "has a mask of its own"
    }


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (CausalAttention("masked"), "layer 'block': scaled_dot_product_attention has a mask of"),
        (CausalAttention("written out"), "layer 'block': matmul reads all positions at once"),
        (CausalAttention("dropped"), "layer 'block': scaled_dot_product_attention has dropout"),
        (CausalAttention("wide values"), "scaled_dot_product_attention has queries and values of"),
    ],
)
def test_a_ring_without_attention_that_can_have_one_is_refused(
    block: nn.Module, reason: str
) -> None:
    case = small_model(Decoder(block))
    with pytest.raises(ContextRefused, match=rf"^context degree 2: no attention .*{reason}"):
        graphs_of(case.captured, Group(context=2, exchange="ring"))


@pytest.mark.parametrize("ring", [False, True])
def test_a_written_out_causal_mask_is_left_out(ring: bool) -> None:
    graphs = checked(small_model(Decoder(CausalAttention("causal mask"))), ring=ring)
    assert count(graphs, ring_attention if ring else causal_attention) == 1
    assert graphs.context is not None
    values = [node.meta.get("val") for node in graphs.context.local.module.graph.nodes]
    assert not any(x is not None and x.dtype == torch.bool and x.dim() > 1 for x in values)


@pytest.mark.parametrize("ring", [False, True])
def test_keys_that_are_written_into_a_new_tensor_are_rows_of_it(ring: bool) -> None:
    graphs = checked(small_model(Decoder(WrittenKeys())), ring=ring)
    assert graphs.context is not None
    made = [
        node.meta["val"].shape[2]
        for node in graphs.context.local.module.graph.nodes
        if operation_name(node) == "empty"
    ]
    assert made == [4]
    assert count(graphs, gather_positions) == (not ring)


def test_positions_follow_the_split() -> None:
    """Only tokens, targets and position numbers are ever taken from a whole value: no table, and no mask."""
    graphs = checked(small_model(Decoder(CausalAttention("masked"))))
    assert graphs.context is not None
    taken = [n for n in graphs.context.local.module.graph.nodes if n.target is own_positions]
    assert len(taken) == 4  # positions twice, for the embedding and for the mask
    assert all(n.meta["val"].dtype == torch.int64 and n.meta["val"].numel() <= 8 for n in taken)


def test_a_mean_over_the_sequence_has_a_whole_gradient() -> None:
    """Its gradient is summed at once: the sum over the ranks in the forward hands it to each rank's own tokens."""
    graphs = checked(small_model(Decoder(Pooled())))
    assert count(graphs, copy) == 1


@pytest.mark.slow
def test_sorted_experts_stay_with_their_tokens() -> None:
    pytest.importorskip("transformers")
    checked(small_model(SortedExperts()), context=4)


def language_loss(reduction: str, **options: Any) -> Callable[..., torch.Tensor]:
    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        wanted = torch.where(target % 3 == 0, -100, target).flatten()
        found = functional.cross_entropy(
            output.flatten(0, 1), wanted, reduction=reduction, **options
        )
        return found.mean() if reduction == "none" else found

    return loss


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_with_ignored_targets_are_exact(reduction: str) -> None:
    """The ignored targets are unevenly spread over the ranks."""
    checked(small_model(Decoder(nn.Identity()), language_loss(reduction)))


def test_label_smoothing_is_exact() -> None:
    checked(small_model(Decoder(nn.Identity()), language_loss("mean", label_smoothing=0.1)))


@pytest.mark.parametrize(
    "loss", [functional.mse_loss, functional.l1_loss, functional.smooth_l1_loss]
)
def test_losses_of_elements_are_exact(loss: Callable[..., torch.Tensor]) -> None:
    case = small_model(nn.Linear(16, 16), lambda output, _: loss(output, output.detach() * 0.5))
    checked(case)


REFUSED = [
    (Convolved, r"'conv': conv1d has no rule"),
    (BatchNormed, r"'norm': batch_norm has no rule"),
    (Accumulated, r"cumsum mixes positions"),
    (SortedTokens, r"sort sorts positions"),
    (FirstToken, r"slice mixes positions"),
    (SequenceFirst, r"scaled_dot_product_attention does not have its rows along one sequence"),
]


@pytest.mark.parametrize(("model", "reason"), REFUSED)
def test_what_mixes_positions_is_refused_with_its_layer(
    model: Callable[[], nn.Module], reason: str
) -> None:
    case = small_model(model())
    with pytest.raises(ModelError, match=reason) as error:
        graphs_of(case.captured, Group(context=2))
    told = str(error.value)
    assert told.startswith("context degree 2: layer '") and "\n" not in told
    assert told.endswith("use context degree 1")


def test_a_sequence_of_another_length_is_refused() -> None:
    case = small_model(Decoder(nn.Identity()))
    with pytest.raises(ModelError, match=r"8 positions, which is no multiple of 6.*degree 2 or 4"):
        graphs_of(case.captured, Group(context=3))
