"""Masks that are computed from positions: which of them are causal."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from autopart.runtime.sharding.context.builder import ContextBuilder
from autopart.runtime.sharding.context.rules import masks
from autopart.runtime.sharding.context.rules.masks import is_causal_mask
from autopart.runtime.sharding.nodes import operation_name
from tests.support.runtime.context_models import Decoder
from tests.support.runtime.sharded_models import LENGTH, WIDTH, heads, small_model

Mask = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From tokens' vectors, numbers of rows (length, 1) and numbers of keys (length)."""


class Masked(nn.Module):
    """Attention under a mask."""

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.mask, self.project = mask, nn.Linear(WIDTH, 3 * WIDTH)
        self.seen = nn.Buffer(torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (heads(part, 4) for part in self.project(x).chunk(3, -1))
        places = torch.arange(x.shape[1])
        mask = self.mask(x, places[:, None], places)
        if mask.dtype == torch.uint8:
            mask = self.seen & mask.bool()
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return x + mixed.transpose(1, 2).flatten(2)


def judged(mask: Mask) -> bool:
    captured = small_model(Decoder(Masked(mask))).captured
    (node,) = (
        n
        for n in captured.module.graph.nodes
        if operation_name(n) == "scaled_dot_product_attention"
    )
    (given,) = (n for n in node.all_input_nodes if n.meta["val"].dtype == torch.bool)
    return is_causal_mask(ContextBuilder(captured, 2, {}), given)


CAUSAL: dict[str, Mask] = {
    "compared": lambda x, rows, keys: keys <= rows,
    "of each sample": lambda x, rows, keys: (keys <= rows).expand(2, 1, -1, -1),
    "with what is always true": lambda x, rows, keys: (rows - keys >= 0) & (keys < LENGTH),
}
OTHERS: dict[str, Mask] = {
    "without the own key": lambda x, rows, keys: keys < rows + (rows == 0),
    "all keys": lambda x, rows, keys: keys <= rows + LENGTH,
    "a window": lambda x, rows, keys: (keys <= rows) & (keys > rows - 5),
    "one row more": lambda x, rows, keys: (keys <= rows) | ((rows == LENGTH - 2) & (keys > 0)),
    "data": lambda x, rows, keys: (keys <= rows) & (x.detach()[:, None, :, :1] < 1e9),
    "a buffer": lambda x, rows, keys: (keys < LENGTH + 0 * rows).to(torch.uint8),
    "rows in another order": lambda x, rows, keys: (keys <= rows).flip(0).flip(1).flip(0),
}


@pytest.mark.parametrize("rows_at_once", [1, 3, LENGTH])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_mask_of_the_keys_up_to_each_row_is_causal(
    name: str, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = 2 if name == "of each sample" else 1
    monkeypatch.setattr(masks, "_OF_BLOCK", samples * rows_at_once * LENGTH)
    assert judged(CAUSAL[name])


@pytest.mark.parametrize("name", OTHERS)
def test_another_mask_is_not(name: str) -> None:
    assert not judged(OTHERS[name])


def test_a_mask_of_too_many_numbers_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "MOST_NUMBERS", LENGTH * LENGTH - 1)
    assert not judged(CAUSAL["compared"])
