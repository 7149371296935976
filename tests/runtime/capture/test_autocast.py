"""Forwards under autocast to bfloat16, compared with the plain model under the same autocast."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import msgspec
import pytest
import torch
from torch import nn
from torch.nn import functional

from autopart.errors import PlanError
from autopart.records.plan import Plan
from autopart.records.run_result import CheckResult
from autopart.runtime.capture.capture import batch_leaves, capture_model
from autopart.runtime.capture.stage_modules import split_stages
from autopart.runtime.engine.plan_match import capture_for_plan
from autopart.runtime.engine.run_settings import RunSettings
from autopart.runtime.models.model import build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from tests.runtime.engine.test_placements import V
from tests.support.long_tests import long_tests
from tests.support.runtime.on_ranks import run, sent_dtypes
from tests.support.runtime.orders import backward_first
from tests.support.runtime.plans import capture, plan_for
from tests.support.runtime.rank_pool import RankPool

captured = cache(capture)
CUT = [0.4]


def plan(model: str, cuts: Sequence[float], **options: object) -> Plan:
    return plan_for(model, captured(model), cuts, **options)


def checked(pool: RankPool, of: Plan, **options: object) -> CheckResult:
    """Run the plan and raise where it differs from the plain model by more than bfloat16."""
    asked = RunSettings(model=of.origin.model, check=True, steps=2, autocast=True, **options)
    result = pool.call(run, of, asked)[0]
    assert result.check is not None and result.check.tolerance == 5e-2
    return result.check


@pytest.mark.slow
def test_a_pipeline_under_autocast_is_the_plain_model_under_autocast(two_ranks: RankPool):
    """The difference is far smaller than between bfloat16 and float32: both cast the same
    operations."""
    check = checked(two_ranks, plan("zoo:mlp-tiny", CUT))
    assert check.gradients <= 1e-5 and check.losses <= 1e-6


@pytest.mark.slow
def test_cast_values_travel_in_16_bits(two_ranks: RankPool):
    of = plan("zoo:mlp-tiny", CUT)
    settings = RunSettings(model=of.origin.model, steps=1, autocast=True)
    assert two_ranks.call(sent_dtypes, of, settings)[0] == ["torch.bfloat16"]
    plain = msgspec.structs.replace(settings, autocast=False)
    assert two_ranks.call(sent_dtypes, of, plain)[0] == ["torch.float32"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    ["zoo:gpt2-tiny", *long_tests("zoo:unet-tiny", "zoo:encdec-tiny", "hf_llama")],
)
@pytest.mark.parametrize("backend", ["autopart", *long_tests("torch")])
def test_recomputed_layers_and_split_backwards_are_cast_alike(
    two_ranks: RankPool, model: str, backend: str
):
    if model.startswith("hf_"):
        pytest.importorskip("transformers")
        model = f"tests/support/models/{model}.py"
    of = plan(model, CUT)
    stages = tuple(msgspec.structs.replace(s, recompute=s.layers[:2]) for s in of.stages)
    checked(two_ranks, msgspec.structs.replace(of, stages=stages), backend=backend)


def gradients(of: nn.Module, losses: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return gradients after four microbatches, each computed under autocast after the one
    before."""
    of.zero_grad()
    for loss in losses:
        (loss / 4).backward()
    return {name: p.grad.clone() for name, p in of.named_parameters() if p.grad is not None}


@pytest.mark.slow
def test_a_llama_is_off_by_the_rounding_of_one_sum_that_transformers_makes_elsewhere_in_a_trace(
    monkeypatch: pytest.MonkeyPatch,
):
    """Query heads share key and value heads.

    A traced graph repeats these heads before attention casts them, so their gradients are summed in
    float32. Otherwise attention repeats them inside and sums in bfloat16. With heads repeated by
    hand, the plain model has the graph's gradients to the bit.
    """
    pytest.importorskip("transformers")
    source = load_model("tests/support/models/hf_llama.py")
    batches = [example_batch(source, 2, seed=m) for m in range(1, 5)]
    model = build_training_model(source)
    graph = capture_model(model, batches[0], autocast=torch.bfloat16)
    (whole,) = split_stages(graph, [[layer.name for layer in graph.layers]])
    under = torch.autocast("cpu", torch.bfloat16)

    def from_graph() -> Iterator[torch.Tensor]:
        for batch in batches:
            leaves = batch_leaves(graph, batch)
            with under:
                (loss,) = whole.module(*(leaves[name] for name in whole.inputs))
            yield loss

    def from_model() -> Iterator[torch.Tensor]:
        for batch in batches:
            with under:
                loss = model(*batch)
            yield loss

    attention, repeated = functional.scaled_dot_product_attention, list[bool]()

    def with_repeated_heads(
        query: torch.Tensor, *shared: torch.Tensor, enable_gqa: bool = False, **options: object
    ) -> torch.Tensor:
        repeated.append(enable_gqa)
        times = query.shape[1] // shared[0].shape[1]
        return attention(query, *(heads.repeat_interleave(times, 1) for heads in shared), **options)

    graphs, plain = gradients(model, from_graph()), gradients(model, from_model())
    monkeypatch.setattr(functional, "scaled_dot_product_attention", with_repeated_heads)
    by_hand = gradients(model, from_model())
    assert all(repeated) and len(repeated) == 16
    for name, gradient in graphs.items():
        assert torch.equal(gradient, by_hand[name]), name
        apart = (gradient - plain[name]).abs().max() / plain[name].abs().max()
        assert apart <= 2 * torch.finfo(torch.bfloat16).eps, name


@pytest.mark.slow
def test_split_backwards_are_cast_alike(two_ranks: RankPool):
    orders = backward_first(V, 4, split_backward=True)
    checked(two_ranks, plan("zoo:gpt2-tiny", [0.2, 0.5, 0.8], ranks=V, orders=orders))


@pytest.mark.slow
def test_a_model_in_16_bits_is_refused():
    of = plan("zoo:mlp-tiny", CUT, dtype="bfloat16")
    source = load_model(of.origin.model)
    with pytest.raises(PlanError, match="autocast is for models in float32, and the plan's has bf"):
        capture_for_plan(of, build_training_model(source), example_batch(source, 2), torch.bfloat16)
