"""Forwards under autocast to bfloat16, held against the plain model under the same autocast."""

from collections.abc import Sequence
from functools import cache

import msgspec
import pytest
import torch

from autopart.errors import PlanError
from autopart.plan import Plan
from autopart.run_result import CheckResult
from autopart.runtime.execution.plan_match import capture_for_plan
from autopart.runtime.execution.run_settings import RunSettings
from autopart.runtime.models.model import build_training_model, example_batch, load_model
from tests.runtime.on_ranks import run, sent_dtypes
from tests.runtime.orders import backward_first
from tests.runtime.plans import capture, plan_for
from tests.runtime.rank_pool import RankPool
from tests.runtime.test_placements import V

captured = cache(capture)
CUT = [0.4]


def plan(model: str, cuts: Sequence[float], **options: object) -> Plan:
    return plan_for(model, captured(model), cuts, **options)


def checked(pool: RankPool, of: Plan, **options: object) -> CheckResult:
    """Raises where the pipeline differs from the plain model under autocast by more than bfloat16."""
    asked = RunSettings(model=of.origin.model, check=True, steps=2, autocast=True, **options)
    result = pool.call(run, of, asked)[0]
    assert result.check is not None and result.check.tolerance == 5e-2
    return result.check


def test_a_pipeline_under_autocast_is_the_plain_model_under_autocast(two_ranks: RankPool):
    """Far closer than bfloat16 and float32 are to each other: the same operations are cast."""
    check = checked(two_ranks, plan("zoo:mlp-tiny", CUT))
    assert check.gradients <= 1e-5 and check.losses <= 1e-6


def test_what_is_cast_travels_in_16_bits(two_ranks: RankPool):
    of = plan("zoo:mlp-tiny", CUT)
    settings = RunSettings(model=of.origin.model, steps=1, autocast=True)
    assert two_ranks.call(sent_dtypes, of, settings)[0] == ["torch.bfloat16"]
    plain = msgspec.structs.replace(settings, autocast=False)
    assert two_ranks.call(sent_dtypes, of, plain)[0] == ["torch.float32"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["zoo:gpt2-tiny", "zoo:unet-tiny", "zoo:encdec-tiny", "hf_llama"])
@pytest.mark.parametrize("backend", ["autopart", "torch"])
def test_recomputed_layers_and_halves_are_cast_alike(two_ranks: RankPool, model: str, backend: str):
    if model.startswith("hf_"):
        pytest.importorskip("transformers")
        model = f"tests/models/{model}.py"
    of = plan(model, CUT)
    stages = tuple(msgspec.structs.replace(s, recompute=s.layers[:2]) for s in of.stages)
    checked(two_ranks, msgspec.structs.replace(of, stages=stages), backend=backend)


@pytest.mark.slow
def test_halves_are_cast_alike(two_ranks: RankPool):
    orders = backward_first(V, 4, halves=True)
    checked(two_ranks, plan("zoo:gpt2-tiny", [0.2, 0.5, 0.8], ranks=V, orders=orders))


def test_a_model_in_16_bits_is_refused():
    of = plan("zoo:mlp-tiny", CUT, dtype="bfloat16")
    source = load_model(of.origin.model)
    with pytest.raises(PlanError, match="autocast is for models in float32, and the plan's has bf"):
        capture_for_plan(of, build_training_model(source), example_batch(source, 2), torch.bfloat16)
