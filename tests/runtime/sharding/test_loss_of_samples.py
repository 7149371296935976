"""The loss of a microbatch follows from the losses of its parts, or is refused."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from autopart.errors import ModelError
from autopart.runtime.capture.capture import Captured, batch_leaves, capture_model
from autopart.runtime.models.model import TrainingModel
from autopart.runtime.sharding.loss_of_samples import SAMPLES, check_samples_apart, split_loss
from autopart.runtime.sharding.shard_groups import LonePlace, shards_registered

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class _Rows(LonePlace):
    """Knows how many rows all parts count."""

    def __init__(self, rows: int) -> None:
        super().__init__(2)
        self._rows = rows

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the number of rows."""
        return tensor.fill_(self._rows)


def captured_with(loss: Loss, batch: tuple[torch.Tensor, torch.Tensor]) -> Captured:
    torch.manual_seed(0)
    return capture_model(TrainingModel(nn.Linear(3, 4), loss), ((batch[0],), batch[1]))


def of_parts(loss: Loss, x: torch.Tensor, target: torch.Tensor, rows: int = 0) -> float:
    """The loss of a batch, from those of its two halves."""
    captured = captured_with(loss, (x[:3], target[:3]))
    share = split_loss(captured, 2)
    with shards_registered(SAMPLES, _Rows(rows)):
        losses = [
            captured.module(*batch_leaves(captured, ((x[half],), target[half])).values())
            for half in (slice(0, 3), slice(3, 6))
        ]
    return sum(one.item() for one in losses) * share


def whole(loss: Loss, x: torch.Tensor, target: torch.Tensor) -> float:
    torch.manual_seed(0)
    return loss(nn.Linear(3, 4)(x), target).item()


@pytest.mark.parametrize(
    "loss",
    [
        functional.mse_loss,
        lambda y, t: functional.mse_loss(y, t, reduction="sum"),
        lambda y, t: 3 * functional.l1_loss(y, t) + (y * t).mean() / 2,
        lambda y, t: (y - t).square().sum(),
    ],
)
def test_means_and_sums_follow_from_parts(loss: Loss) -> None:
    x, target = torch.randn(6, 3), torch.randn(6, 4)
    assert of_parts(loss, x, target) == pytest.approx(whole(loss, x, target), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rows_without_a_label_count_nothing_in_any_part(smoothing: float) -> None:
    def loss(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(y, t, label_smoothing=smoothing)

    x, target = torch.randn(6, 3), torch.tensor([0, -100, 2, 1, -100, -100])
    assert of_parts(loss, x, target, 3) == pytest.approx(whole(loss, x, target), rel=1e-5)
    # A part without any label has no loss, where torch's own mean is not a number.
    target = torch.tensor([-100, -100, -100, 1, 2, 0])
    assert of_parts(loss, x, target, 3) == pytest.approx(whole(loss, x, target), rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda y, t: (y - t).square().mean().sqrt(), "neither a mean nor a sum"),
        (lambda y, t: y.mean() * t.mean(), "neither a mean nor a sum"),
        (lambda y, t: (y - t).sum() + y.mean(), "neither a mean nor a sum"),
        (lambda y, t: 1 / (y - t).sum(), "neither a mean nor a sum"),
    ],
)
def test_other_losses_are_refused_in_one_line(loss: Loss, said: str) -> None:
    captured = captured_with(loss, (torch.randn(3, 3), torch.randn(3, 4)))
    with pytest.raises(ModelError, match=said) as told:
        split_loss(captured, 2)
    assert "\n" not in str(told.value) and "--shard none" in str(told.value)


def contrastive(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(y @ t.T, torch.arange(len(y)))


def with_equal_labels(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(y * t, torch.zeros(len(y), dtype=torch.int64))


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (contrastive, "'matmul' does not: it multiplies samples by samples"),
        (lambda y, t: (y @ t.T).mean(), "multiplies samples by samples"),
        (with_equal_labels, "its labels do not come from the batch"),
    ],
)
def test_losses_in_which_samples_meet_are_refused(loss: Loss, said: str) -> None:
    captured = captured_with(loss, (torch.randn(3, 3), torch.randn(3, 4)))
    with pytest.raises(ModelError, match=said):
        check_samples_apart(captured)
        split_loss(captured, 2)


def test_products_per_sample_are_no_products_of_samples() -> None:
    def loss(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (y[:, :, None] @ t[:, None]).mean()

    x, target = torch.randn(6, 3), torch.randn(6, 4)
    check_samples_apart(captured_with(loss, (x[:3], target[:3])))
    assert of_parts(loss, x, target) == pytest.approx(whole(loss, x, target), rel=1e-5)


def test_classes_with_weights_and_batch_norms_are_refused() -> None:
    weights = torch.rand(4)
    captured = captured_with(
        lambda y, t: functional.cross_entropy(y, t, weights),
        (torch.randn(3, 3), torch.tensor([0, 1, 2])),
    )
    with pytest.raises(ModelError, match="its classes have weights"):
        split_loss(captured, 2)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    captured = capture_model(
        TrainingModel(model, functional.mse_loss), ((torch.randn(3, 3),), torch.randn(3, 4))
    )
    with pytest.raises(ModelError, match="statistics over all samples"):
        split_loss(captured, 2)
