"""Lazy parameters get shapes when the model is built, equal for equal seeds."""

from typing import Any

import pytest
import torch
from torch import nn

from autopart.errors import ModelError
from autopart.runtime.models.lazy_parameters import has_lazy_parameters
from autopart.runtime.models.model import build_training_model
from autopart.zoo.source import ModelSource


def source(build: Any) -> ModelSource:
    return ModelSource(
        name="lazy.py",
        build_model=build,
        example_inputs=lambda size: (torch.randn(size, 6),),
        example_target=lambda size: torch.randn(size, 3),
        loss_fn=nn.functional.mse_loss,
    )


def lazy() -> nn.Module:
    norm = nn.LazyBatchNorm1d()
    return nn.Sequential(nn.LazyLinear(4), norm, nn.Linear(4, 4).eval(), nn.LazyLinear(3))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_lazy_parameters_have_the_shapes_of_the_first_forward(device: str) -> None:
    model = build_training_model(source(lazy), device=device)
    assert not has_lazy_parameters(model)
    assert [tuple(p.shape) for p in model.parameters()][:2] == [(4, 6), (4,)]
    assert {parameter.device.type for parameter in model.parameters()} == {device}


def test_equal_seeds_give_equal_lazy_weights_and_the_first_forward_is_no_step() -> None:
    one, two, other = (build_training_model(source(lazy), seed=seed) for seed in (1, 1, 2))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
    assert dict(one.named_buffers())["model.1.num_batches_tracked"] == 0


def test_a_lazy_parameter_that_the_forward_does_not_reach_is_refused() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.LazyLinear(3), nn.LazyLinear(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    with pytest.raises(ModelError, match=r"lazy.py: the lazy parameter 'idle.weight' has no shape"):
        build_training_model(source(Idle))
