"""Microbatches weigh by their labels, and padding does not count."""

import pytest
import torch
from torch import nn

from autopart.errors import UsageError
from autopart.trainers.label_counts import counter_for, padded, weights_of
from autopart.trainers.needed import needed


def test_a_causal_model_never_predicts_the_first_token() -> None:
    class Causal(nn.Module):
        def loss_function(self) -> None: ...

    Causal.loss_function.__name__ = "ForCausalLMLoss"
    labels = {"labels": torch.tensor([[5, 6, -100], [7, -100, -100]])}
    assert counter_for(Causal())(labels) == 1.0
    assert counter_for(nn.Linear(1, 1))(labels) == 3.0
    assert counter_for(nn.Linear(1, 1))({"labels": torch.zeros(2)}) is None


def test_weights_make_the_mean_over_microbatches_the_mean_over_labels() -> None:
    sums, counts = (6.0, 2.0, 10.0), (3.0, 1.0, 4.0)
    weights = weights_of(counts)
    assert weights is not None
    means = [total / count for total, count in zip(sums, counts, strict=True)]
    weighted = sum(weights[m] * mean for m, mean in enumerate(means)) / 3
    assert weighted == pytest.approx(sum(sums) / sum(counts))
    assert weights_of((2.0, 2.0)) is None and weights_of((None, None)) is None
    assert weights_of((2.0, 2.0), total=8.0) == {0: 0.5, 1: 0.5}
    with pytest.raises(UsageError, match="all labels of the batch are -100"):
        weights_of((0.0, 0.0), total=0.0)


def test_a_small_batch_is_made_whole_with_samples_that_do_not_count() -> None:
    small = {"input_ids": torch.tensor([[1, 2], [3, 4]]), "labels": torch.tensor([[1, 2], [3, 4]])}
    whole = padded(small, 3)
    assert whole["input_ids"].tolist() == [[1, 2], [3, 4], [1, 2]]
    assert whole["labels"].tolist() == [[1, 2], [3, 4], [-100, -100]]
    assert padded(small, 2) == small
    for batch, size in ((small, 1), ({"x": torch.zeros(2, 1)}, 3)):
        with pytest.raises(UsageError, match="a batch of 2 samples does not fit the plan's"):
            padded(batch, size)


def test_a_missing_package_is_one_line_with_the_command() -> None:
    with (
        pytest.raises(
            UsageError, match=r"^nothing_here is not installed; .*'autopart\[trainers\]'$"
        ),
        needed("nothing_here"),
    ):
        import nothing_here.inside  # noqa: F401  # pyright: ignore
