import math

import pytest
import torch

from autopart.records.run_result import CheckResult
from autopart.runtime.checking.reference_run import ReferenceRun
from tests.support.runtime.on_ranks import checked
from tests.support.runtime.rank_pool import RankPool

TensorsOfRanks = list[dict[str, dict[str, torch.Tensor]]]

WEIGHT = torch.tensor([1.0, -0.5])
GRADIENT = torch.tensor([0.2, 0.4])
NOISE = torch.tensor([3e-9, -1e-9])
LOSSES = (2.0, 1.8)


def reference() -> ReferenceRun:
    """Two SGD steps for a weight, and for a key bias whose true gradient is zero."""
    first, last = WEIGHT - 0.1 * GRADIENT, WEIGHT - 0.2 * GRADIENT
    zero = torch.zeros(2)
    return ReferenceRun(
        losses=LOSSES,
        loss_dtype=torch.float32,
        gradients={"weight": GRADIENT, "key.bias": NOISE},
        start={"weight": WEIGHT, "key.bias": zero},
        first={"weight": first, "key.bias": -0.1 * NOISE},
        last={"weight": last, "key.bias": -0.2 * NOISE},
        buffers={"mean": torch.tensor([0.3])},
    )


def tensors_of_ranks() -> TensorsOfRanks:
    """Tensors of two ranks in a correct pipeline: the weight on both, the rest on one."""
    plain = reference()
    shared = {
        "gradients": {"weight": plain.gradients["weight"].clone()},
        "first": {"weight": plain.first["weight"].clone()},
        "last": {"weight": plain.last["weight"].clone()},
        "buffers": {},
    }
    second = {kind: {n: t.clone() for n, t in of.items()} for kind, of in shared.items()}
    second["gradients"]["key.bias"] = -2.0 * NOISE
    second["first"]["key.bias"] = 0.2 * NOISE
    second["last"]["key.bias"] = 0.4 * NOISE
    second["buffers"]["mean"] = torch.tensor([0.3])
    return [shared, second]


def outcome(
    pool: RankPool, of: TensorsOfRanks, losses: tuple[float, ...] = LOSSES, optimizer: str = "sgd"
) -> CheckResult | str:
    return pool.call(checked, reference(), of, losses, optimizer)[0]


def test_equal_runs_pass_and_noise_about_zero_does_not_count(two_ranks: RankPool):
    result = outcome(two_ranks, tensors_of_ranks())
    assert isinstance(result, CheckResult)
    assert max(result.gradients, result.first_update or 0.0, result.parameters) < 1e-6
    assert (result.num_parameters, result.num_buffers) == (2, 1)


def test_imaginary_parts_are_compared(two_ranks: RankPool):
    plain, of = reference(), tensors_of_ranks()
    plain.gradients["weight"] = GRADIENT.to(torch.complex64)  # pyright: ignore[reportIndexIssue]
    for rank in of:
        rank["gradients"]["weight"] = GRADIENT + torch.tensor([0.0, 1e-3j])
    said = two_ranks.call(checked, plain, of, LOSSES, "sgd")[0]
    assert isinstance(said, str) and "the gradient of weight on rank 0 by 0.0025" in said


def test_rounding_within_the_tolerance_is_reported(two_ranks: RankPool):
    of = tensors_of_ranks()
    of[1]["gradients"]["weight"][0] += 1e-6
    result = outcome(two_ranks, of)
    assert isinstance(result, CheckResult) and result.worst_gradient == "weight"
    assert result.gradients == pytest.approx(2.5e-6, rel=0.1)


@pytest.mark.parametrize(
    ("kind", "name", "change", "said"),
    [
        (
            "gradients",
            "weight",
            1e-5,
            "the gradient of weight on rank 1 by 2.5e-05 (1e-05 allowed)",
        ),
        ("gradients", "key.bias", 1e-3, "the gradient of key.bias on rank 1"),
        ("gradients", "weight", math.nan, "the gradient of weight on rank 1 by inf"),
        ("first", "weight", 1e-4, "after the first step parameter weight on rank 1"),
        ("last", "weight", 1e-2, "after the last step parameter weight on rank 1"),
        ("last", "weight", math.inf, "after the last step parameter weight on rank 1 by inf"),
        ("buffers", "mean", 0.1, "buffer mean on rank 1"),
    ],
)
def test_a_difference_is_named_with_its_rank_and_its_size(
    two_ranks: RankPool, kind: str, name: str, change: float, said: str
):
    of = tensors_of_ranks()
    of[1][kind][name][0] += change
    result = outcome(two_ranks, of)
    assert isinstance(result, str) and said in result


def test_one_wrong_copy_of_a_shared_parameter_is_enough_to_fail(two_ranks: RankPool):
    of = tensors_of_ranks()
    of[0]["last"]["weight"] = reference().start["weight"].clone()
    result = outcome(two_ranks, of)
    assert isinstance(result, str) and "parameter weight on rank 0" in result


def test_a_gradient_that_the_pipeline_lacks_is_named(two_ranks: RankPool):
    of = tensors_of_ranks()
    for rank in of:
        del rank["gradients"]["weight"]
    result = outcome(two_ranks, of)
    assert isinstance(result, str) and "the gradient of weight" in result


def test_a_gradient_that_only_the_pipeline_has_is_named(two_ranks: RankPool):
    of = tensors_of_ranks()
    of[1]["gradients"]["frozen"] = torch.tensor([0.1])
    result = outcome(two_ranks, of)
    assert isinstance(result, str) and "the gradient of frozen on rank 1" in result


def test_a_first_loss_beyond_the_tolerance_fails(two_ranks: RankPool):
    result = outcome(two_ranks, tensors_of_ranks(), losses=(2.0001, 1.8))
    assert isinstance(result, str) and "the loss of step 1 by 5e-05" in result


def test_a_later_loss_may_drift_in_proportion_to_its_change(two_ranks: RankPool):
    assert isinstance(outcome(two_ranks, tensors_of_ranks(), losses=(2.0, 1.801)), CheckResult)
    assert isinstance(outcome(two_ranks, tensors_of_ranks(), losses=(2.0, 1.81)), str)


def test_with_adamw_noise_may_move_a_parameter_by_whole_learning_rates(two_ranks: RankPool):
    of = tensors_of_ranks()
    of[1]["last"]["key.bias"] = torch.tensor([0.2, -0.2])
    result = outcome(two_ranks, of, optimizer="adamw")
    assert isinstance(result, CheckResult) and result.first_update is None
    of[1]["last"]["key.bias"] = torch.tensor([0.9, -0.9])
    assert isinstance(outcome(two_ranks, of, optimizer="adamw"), str)
