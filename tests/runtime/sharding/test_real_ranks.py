"""Local graphs over gloo: processes that exchange really have the plain model's gradients."""

import pytest

from tests.support.long_tests import long_tests
from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.sharding_ranks import errors

pytestmark = pytest.mark.slow

MODELS = [
    "zoo:gpt2-tiny",
    "zoo:llama-tiny",
    "zoo:encdec-tiny",
    "zoo:moe-tiny",
    "tests/support/models/hf_llama.py",
]
FLOAT32 = 2e-5
"""Rounding in float32. Gradients below 1e-3 of the largest one count relative to that: key biases have 0."""


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("model", [MODELS[0], *long_tests(*MODELS[1:-1]), MODELS[-1]])
def test_two_ranks_have_the_plain_models_gradients_in_two_stages(
    two_ranks: RankPool, model: str, sequence_parallel: bool
) -> None:
    for loss, gradient in two_ranks.call(errors, model, sequence_parallel, 2):
        assert loss < 1e-6 and gradient < FLOAT32


@pytest.mark.long
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("model", ["zoo:llama-tiny"])
def test_four_ranks_have_the_plain_models_gradients(
    four_ranks: RankPool, model: str, sequence_parallel: bool
) -> None:
    for loss, gradient in four_ranks.call(errors, model, sequence_parallel, 1):
        assert loss < 1e-6 and gradient < FLOAT32
