"""Megatron-Core reads layout strings as autopart does."""

import random

import pytest

from autopart.importers.megatron import units_of_layout
from tests.exporters.readback.conftest import Needs

LETTERS = {"embedding": "E", "decoder": "t", "mtp": "m", "loss": "L"}


def _layout(draw: random.Random) -> str:
    """A layout string with repeats, groups and commas."""
    parts = ["t", "t*3", "(t|)*2", "(tt|t|)*2", "|t*2", ",t", "t|t", "(|t)*3"]
    inner = "".join(draw.choice(parts) for _ in range(draw.randint(1, 6)))
    return f"E{inner}{draw.choice(['', 'm', '|m|'])}L"


def test_megatron_writes_out_the_same_stages(needs: Needs) -> None:
    needs("megatron", "0.16")
    megatron = pytest.importorskip("megatron.core.transformer.pipeline_parallel_layer_layout")
    draw = random.Random(5)
    for _ in range(300):
        layout = _layout(draw)
        theirs = megatron.PipelineParallelLayerLayout.parse_str_to_list(layout)
        ours = [
            "".join(
                {"embedding": "E", "norm": "", "head": "L", "mtp": "m"}.get(u, "t") for u in stage
            )
            for stage in units_of_layout(layout)
        ]
        assert ours == ["".join(LETTERS[layer.name] for layer in stage) for stage in theirs], layout
