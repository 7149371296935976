"""Gradients that float32 rounds by more than the tolerance, in the plain model too."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autopart.errors import RunError
from autopart.records.run_result import CheckResult
from autopart.runtime.checking.check import CheckRecord, Deviation
from autopart.runtime.checking.own_rounding import gradients_in_float64
from autopart.runtime.checking.reference_run import ReferenceRun
from autopart.runtime.checking.verdict import outcome
from autopart.zoo.source import ModelSource

PLAIN = torch.tensor([0.5, -1.0])


def verdict(apart: float, own: float) -> CheckResult:
    """The verdict on a gradient that differs by `apart`, and whose plain one by `own` from float64."""
    zero = {"weight": torch.zeros(2)}
    reference = ReferenceRun((1.0,), torch.float32, {"weight": PLAIN}, zero, zero, zero, {})
    check = CheckRecord(
        reference, "float32", 1, "sgd", 0.1, in_float64=lambda: {"weight": PLAIN.double() + own}
    )
    check.gradients.append(Deviation("weight", 1, apart, check.tolerance))
    check.parameters.append(Deviation("weight", 1, 0.0, 0.01))
    return outcome(check, (1.0,), 0, ())


def test_a_gradient_may_differ_by_a_few_times_the_plain_models_own_rounding():
    (note,) = verdict(apart=1.4e-5, own=1e-5).notes
    assert "rounds the plain model's own gradients by more than the tolerance, 'weight'" in note


@pytest.mark.parametrize(("apart", "own"), [(1.4e-5, 1e-6), (1e-4, 1e-5), (0.5, 1e-3)])
def test_a_gradient_that_differs_by_more_is_wrong(apart: float, own: float):
    with pytest.raises(RunError, match="the gradient of weight on rank 1"):
        verdict(apart, own)


def test_within_the_tolerance_nothing_is_run_in_float64():
    assert verdict(apart=9e-6, own=float("nan")).notes == ()


def test_gradients_in_float64_come_from_the_same_weights_and_batches():
    torch.manual_seed(3)
    inputs, target = torch.randn(2, 4), torch.randn(2, 4)
    source = ModelSource(
        name="linear", build_model=lambda: nn.Linear(4, 4), example_inputs=lambda n: (inputs,),
        example_target=lambda n: target, loss_fn=F.mse_loss,
    )  # fmt: skip
    found = gradients_in_float64(source, 7, lambda m: ((inputs,), target), 2, "cpu", None)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = nn.Linear(4, 4).double()
    F.mse_loss(model(inputs.double()), target.double()).backward()
    assert model.weight.grad is not None
    assert torch.allclose(found["weight"], model.weight.grad, rtol=1e-12)
