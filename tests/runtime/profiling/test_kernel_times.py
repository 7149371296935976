"""Seconds under the kernel model, by hand."""

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autopart.records.gpu import Gpu
from autopart.records.kernels import Kernels, OwnRate, Shares
from autopart.runtime.profiling.kernel_times import (
    kernel_pair_seconds,
    kernel_seconds,
    product_use,
)
from autopart.runtime.profiling.op_costs import OpCost, OpCosts
from autopart.runtime.profiling.op_kinds import ProductShape

GPU = Gpu(
    name="toy",
    memory_bytes=1 << 30,
    flops={"float32": 1e9},
    multiprocessors=10,
    memory_bandwidth=1e8,
    host_bandwidth=1e9,
    link_bandwidth=1e8,
    source="a test",
)
KERNELS = Kernels(
    target="torch",
    accumulation="separate",
    shares=Shares(products=0.5, attention=0.25, memory=0.8, random=0.1),
    depth=0,
    kernel_time=0.0,
    host_time=0.0,
)
FUSED = msgspec.structs.replace(KERNELS, accumulation="fused")


def seconds(*costs: OpCost, kernels: Kernels = KERNELS) -> float:
    return kernel_seconds(costs, GPU, kernels, "float32")


def cost(flops: int, moved: int, kind: str = "memory", **more: object) -> OpCost:
    return OpCost(flops, moved, torch.float32, kind=kind, **more)  # pyright: ignore


def test_each_kind_reaches_its_own_share() -> None:
    assert seconds(cost(10**9, 1, "products")) == pytest.approx(2.0)
    assert seconds(cost(10**9, 1, "attention")) == pytest.approx(4.0)
    assert seconds(cost(10**9, 1, "attention", causal=True)) == pytest.approx(2.0)
    assert seconds(cost(0, 10**8)) == pytest.approx(1.25)
    assert seconds(cost(0, 10**8, "random")) == pytest.approx(10.0)


def test_a_cpu_adds_the_seconds_of_operands_and_those_of_an_operation_with_its_own_rate() -> None:
    cpu = msgspec.structs.replace(GPU, name="cpu", multiprocessors=0)
    product = cost(10**9, 10**8, "products", product=ProductShape(1, 8, 8, 64), name="addmm")
    assert kernel_seconds([product], cpu, KERNELS, "float32") == pytest.approx(2.0 + 1.25)
    own = msgspec.structs.replace(
        KERNELS, rates={"addmm": OwnRate(share=0.25, depth=64, start=0.5)}
    )
    # A quarter of the rate, and half of it at this depth.
    assert kernel_seconds([product], cpu, own, "float32") == pytest.approx(8.0 + 1.25 + 0.5)
    other = product._replace(name="mm")
    assert kernel_seconds([other], cpu, own, "float32") == pytest.approx(2.0 + 1.25)


def test_the_host_is_a_floor_under_the_pass_and_not_under_each_operation() -> None:
    slow_host = msgspec.structs.replace(KERNELS, host_time=0.5)
    long, short = cost(0, 10**8), cost(0, 1)
    assert seconds(long, short, kernels=slow_host) == pytest.approx(1.25), "the host ran ahead"
    assert seconds(*[short] * 10, kernels=slow_host) == pytest.approx(5.0)


def test_a_forward_hides_beneath_a_backward_that_waits_for_something_else() -> None:
    computing, streaming = cost(10**9, 10**6, "products"), cost(0, 10**8)
    pair = kernel_pair_seconds([computing], [streaming], GPU, KERNELS, "float32")
    assert pair == pytest.approx(2.0), "streaming hides"
    both = kernel_pair_seconds([computing], [computing], GPU, KERNELS, "float32")
    assert both == pytest.approx(4.0), "two of a kind hide nothing"


def test_each_kernel_takes_its_own_time_besides() -> None:
    started = msgspec.structs.replace(KERNELS, kernel_time=1.0)
    assert seconds(cost(0, 10**8), cost(0, 0), kernels=started) == pytest.approx(3.25)


def test_an_addition_to_the_gradient_vanishes_where_products_add() -> None:
    product, added = cost(10**9, 1, "products"), cost(0, 10**8, summed_bytes=10**7)
    assert seconds(product, added) == pytest.approx(3.25)
    assert seconds(product, added, kernels=FUSED) == pytest.approx(2.0)
    in_place = cost(10**9, 1, "products", summed_bytes=8 * 10**7)
    assert seconds(in_place) == pytest.approx(2.0 + 3.0), "a product, then its addition"
    assert seconds(in_place, kernels=FUSED) == pytest.approx(2.0)


def test_a_last_wave_that_is_nearly_empty_wastes_most_of_it() -> None:
    full = ProductShape(1, 5 * 256, 2 * 128, 256)
    assert product_use(full, 10, 0) == pytest.approx(1.0), "ten tiles on ten multiprocessors"
    more = ProductShape(1, 5 * 256 + 1, 2 * 128, 256)
    assert 0.5 < product_use(more, 10, 0) < 0.95
    tiny = ProductShape(1, 64, 64, 256)
    assert product_use(tiny, 10, 0) == pytest.approx(0.07), "one of the smallest tiles"


def test_a_shallow_product_reaches_less_and_a_deep_one_is_split() -> None:
    assert product_use(ProductShape(1, 2560, 1280, 64), 10, 64) == pytest.approx(0.5)
    narrow = ProductShape(1, 256, 128, 4096)
    assert product_use(narrow, 10, 0) > product_use(ProductShape(1, 256, 128, 512), 10, 0)


def test_the_operations_of_a_linear_layer_show_their_kinds_and_sums() -> None:
    layer, x = nn.Linear(8, 16), torch.randn(32, 8)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    sums = [p.grad for p in layer.parameters() if p.grad is not None]
    with OpCosts(sums) as costs:
        F.dropout(layer(x), 0.5).sum().backward()
        found = costs.take()
    (forward, weight) = [one for one in found if one.kind == "products"]
    assert forward.product == ProductShape(1, 32, 16, 8)
    assert weight.product == ProductShape(1, 16, 8, 32)
    assert sorted(one.summed_bytes for one in found)[-2:] == [4 * 16, 4 * 16 * 8]
    assert costs.seen.draws
    assert costs.seen.attention == "none"


def test_attention_is_named_fused_or_plain() -> None:
    q = torch.randn(1, 2, 16, 8)
    with OpCosts() as costs:
        _ = (q @ q.transpose(-2, -1)).softmax(-1) @ q
        assert costs.seen.attention == "plain"
        F.scaled_dot_product_attention(q, q, q, is_causal=True)
        assert costs.seen.attention == "both"
        assert costs.take()[-1].causal
    with OpCosts() as costs:
        F.scaled_dot_product_attention(q, q, q)
        assert costs.seen.attention == "fused"
        assert not costs.take()[-1].causal


def test_a_convolution_is_the_product_of_its_patches() -> None:
    with OpCosts() as costs:
        F.conv2d(torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3))
        (one,) = [c for c in costs.take() if c.kind == "products"]
    assert one.product == ProductShape(1, 2 * 6 * 6, 4, 27)
