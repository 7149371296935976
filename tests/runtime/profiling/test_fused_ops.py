"""On meta, attention and dropout keep the bytes that a GPU's kernels keep."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autopart.runtime.measuring.saved_tensors import SavedStorages
from autopart.runtime.profiling.fused_ops import FusedOps
from autopart.runtime.profiling.op_costs import OpCosts


def _meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta", requires_grad=True)


def _kept(run: object) -> int:
    with SavedStorages() as saved:
        result = run()  # type: ignore[operator]
    kept = sum(saved.kept().values())
    assert result.requires_grad
    return kept


@pytest.mark.parametrize("call", ["function", "graph"])
def test_fused_attention_keeps_no_scores(call: str) -> None:
    q, k, v = _meta(1, 4, 64, 8), _meta(1, 2, 64, 8), _meta(1, 2, 64, 8)
    attention = {
        "function": F.scaled_dot_product_attention,
        "graph": torch.ops.aten.scaled_dot_product_attention.default,
    }[call]

    def run() -> torch.Tensor:
        return attention(q, k, v, is_causal=True, enable_gqa=True)

    plain = _kept(run)
    with FusedOps():
        fused = _kept(run)
    query, scores, sums = q.nbytes, 4 * 64 * 64 * 4, 4 * 64 * 4
    assert fused == 2 * query + 2 * k.nbytes + sums, (
        "q, the output, k and v, and a sum for each row"
    )
    assert plain > scores


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.float32])
def test_fused_attention_keeps_the_bytes_of_a_real_cpu(mask_dtype: torch.dtype) -> None:
    def kept(device: str) -> int:
        q, k, v = (torch.zeros(2, 4, 16, 8, device=device, requires_grad=True) for _ in range(3))
        mask = torch.ones(1, 1, 16, 16, device=device, dtype=mask_dtype)
        return _kept(lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    with FusedOps():
        assert kept("meta") == kept("cpu")


def test_a_trained_mask_keeps_the_plain_attention() -> None:
    q, mask = _meta(1, 1, 16, 8), _meta(1, 1, 16, 16)
    with FusedOps():
        F.scaled_dot_product_attention(q, q, q, attn_mask=mask).sum().backward()
    assert mask.grad is not None


@pytest.mark.parametrize(
    "drop",
    [
        nn.Dropout(0.5),
        lambda x: F.dropout(x, 0.5),
        lambda x: torch.dropout(x, 0.5, True),
        lambda x: torch.ops.aten.dropout.default(x, 0.5, True),
    ],
)
def test_fused_dropout_keeps_one_byte_an_element(drop: object) -> None:
    x = _meta(4, 8)
    with FusedOps():
        assert _kept(lambda: drop(x)) == 32  # type: ignore[operator]
    with FusedOps(dropout=False):
        assert _kept(lambda: drop(x)) == 128, "a CPU keeps the noise itself"  # type: ignore[operator]


def test_dropout_that_drops_nothing_stays_as_it_is() -> None:
    x = _meta(4, 8)
    with FusedOps():
        assert F.dropout(x, 0.0) is not None
        assert F.dropout(x, 0.5, training=False).shape == x.shape
        assert torch.dropout(x, 0.5, False).shape == x.shape


def test_real_tensors_are_left_alone() -> None:
    x = torch.ones(1000, requires_grad=True)
    with FusedOps():
        assert _kept(lambda: F.dropout(x, 0.5)) == 4000


@pytest.mark.parametrize("mask", [None, torch.bool, torch.bfloat16])
def test_values_of_another_width_than_keys_have_fused_attention_too(
    mask: torch.dtype | None,
) -> None:
    """DeepSeek's heads have keys of 192 and values of 128 elements: no score matrix is kept, and the flops are those of both widths."""
    query, key = (torch.empty(1, 2, 64, 24, device="meta", requires_grad=True) for _ in range(2))
    value = torch.empty(1, 2, 64, 16, device="meta", requires_grad=True)
    hidden = None if mask is None else torch.empty(1, 1, 64, 64, device="meta", dtype=mask)
    with OpCosts() as costs, FusedOps():
        output = F.scaled_dot_product_attention(query, key, value, hidden, is_causal=mask is None)
        (own,) = [one for one in costs.take() if one.kind == "attention"]
        output.backward(torch.empty_like(output))
        (back,) = [one for one in costs.take() if one.kind == "attention"]
    assert output.shape == (1, 2, 64, 16)
    assert own.flops == 2 * 2 * 64 * 64 * (24 + 16)
    assert back.flops == 2 * 2 * 64 * 64 * (3 * 24 + 2 * 16)
    assert own.causal is back.causal is (mask is None)
