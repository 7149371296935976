"""FLOPs and bytes of single operations, by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autopart.runtime.profiling.op_costs import OpCosts


def test_a_linear_layer_costs_two_flops_a_weight_and_row_and_twice_that_in_backward() -> None:
    layer, x = nn.Linear(8, 16), torch.randn(32, 8, requires_grad=True)
    with OpCosts() as costs:
        y = layer(x)
        forward = costs.take()
        y.backward(torch.ones_like(y))
        backward = costs.take()
    assert sum(cost.flops for cost in forward) == 2 * 32 * 8 * 16
    assert sum(cost.flops for cost in backward) == 2 * (2 * 32 * 8 * 16)
    assert forward[0].moved_bytes == 4 * (16 + 32 * 8 + 8 * 16 + 32 * 16)


def test_the_input_gradient_alone_costs_half_a_linear_layers_backward() -> None:
    layer, x = nn.Linear(8, 16), torch.randn(32, 8, requires_grad=True)
    y = layer(x)
    with OpCosts() as costs:
        torch.autograd.grad(y, x, torch.ones_like(y))
        assert sum(cost.flops for cost in costs.take()) == 2 * 32 * 8 * 16


def test_a_product_that_is_added_in_place_has_its_flops() -> None:
    total, a, b = torch.zeros(4, 6), torch.ones(4, 5), torch.ones(5, 6)
    with OpCosts() as costs:
        total.addmm_(a, b)
    (cost,) = costs.take()
    assert cost.flops == 2 * 4 * 5 * 6


def test_views_and_empty_tensors_cost_nothing() -> None:
    x = torch.randn(4, 8)
    with OpCosts() as costs:
        x.t().view(8, 2, 2)[3:].expand(5, 2, 2)
        torch.empty_like(x)
        assert costs.take() == []


def test_a_lookup_reads_only_the_rows_that_it_copies() -> None:
    table, ids = torch.randn(1000, 16), torch.tensor([1, 2, 3])
    with OpCosts() as costs:
        F.embedding(ids, table)
        (cost,) = costs.take()
    assert cost.moved_bytes == 2 * (3 * 16 * 4) + 3 * 8


def test_an_expanded_operand_is_read_once() -> None:
    row, matrix = torch.randn(1, 64).expand(64, 64), torch.randn(64, 64)
    with OpCosts() as costs:
        _ = row * matrix
        (cost,) = costs.take()
    assert cost.moved_bytes == 4 * (64 + 2 * 64 * 64)


def test_an_operation_in_place_reads_and_writes() -> None:
    x = torch.randn(64)
    with OpCosts() as costs:
        x.add_(1.0)
        x.zero_()
        assert [cost.moved_bytes for cost in costs.take()] == [2 * 256, 256]


def test_attention_counts_its_two_products_and_the_five_of_its_backward() -> None:
    q, k, v = (torch.randn(1, 2, 16, 8, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 16 * 16 * 8
    with OpCosts() as costs:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        assert sum(cost.flops for cost in costs.take()) == 2 * product
        y.backward(torch.ones_like(y))
        assert sum(cost.flops for cost in costs.take()) == 5 * product


def test_the_rate_is_that_of_the_first_floating_operand() -> None:
    with OpCosts() as costs:
        _ = torch.ones(4, dtype=torch.bfloat16) * 2
        torch.arange(3)
        assert [cost.dtype for cost in costs.take()][-2:] == [torch.bfloat16, torch.float32]


def test_products_of_sorted_rows_with_one_matrix_per_expert_count_each_row_once() -> None:
    x = torch.randn(32, 16, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(4, 16, 24, dtype=torch.bfloat16, requires_grad=True)
    ends = torch.tensor([8, 8, 20, 32], dtype=torch.int32)
    with OpCosts() as costs:
        y = torch._grouped_mm(x, weight, ends)
        forward = costs.take()
        y.backward(torch.ones_like(y))
        backward = costs.take()
    assert sum(cost.flops for cost in forward) == 2 * 32 * 16 * 24
    assert sum(cost.flops for cost in backward) == 2 * (2 * 32 * 16 * 24)
    assert {cost.kind for cost in forward} == {"products"}


@pytest.mark.slow
def test_transformers_own_products_of_sorted_rows_count_alike() -> None:
    """Transformers runs them on a CPU, and in dtypes that torch's kernel does not take."""
    pytest.importorskip("transformers.integrations.moe")
    x, weight = torch.randn(32, 16, requires_grad=True), torch.randn(4, 16, 24, requires_grad=True)
    ends = torch.tensor([8, 8, 20, 32], dtype=torch.int32)
    with OpCosts() as costs:
        y = torch.ops.transformers.grouped_mm_fallback(x, weight, ends)
        forward = costs.take()
        y.backward(torch.ones_like(y))
        backward = costs.take()
    products = [cost for cost in forward if cost.kind == "products"]
    assert sum(cost.flops for cost in products) == 2 * 32 * 16 * 24
    grouped = [cost for cost in backward if cost.name == "grouped_mm_fallback_backward"]
    assert sum(cost.flops for cost in grouped) == 2 * (2 * 32 * 16 * 24)


def test_a_product_with_a_matrix_per_expert_has_the_shape_of_equal_groups() -> None:
    """Backward has a product of the same rows for x, and one over the rows of each expert for its weight."""
    x = torch.empty(64, 32, device="meta", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.empty(4, 32, 48, device="meta", dtype=torch.bfloat16, requires_grad=True)
    with OpCosts() as costs:
        y = torch._grouped_mm(x, weight, torch.empty(4, device="meta", dtype=torch.int32))
        forward = costs.take()
        y.backward(torch.empty_like(y))
        backward = costs.take()
    assert [cost.product for cost in forward] == [(4, 16, 48, 32)]
    shapes = {cost.product for cost in backward if cost.kind == "products"}
    assert shapes == {(4, 16, 32, 48), (4, 32, 48, 16)}
