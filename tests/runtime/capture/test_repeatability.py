"""A forward that takes another path each time is refused, or its path is chosen in each step."""

import itertools

import pytest
import torch

from autopart.errors import ModelError
from autopart.runtime.capture.capture import Captured, capture_model
from autopart.runtime.capture.repeatability import check_repeatable
from autopart.runtime.models.model import TrainingModel, build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from tests.support.places import MODELS
from tests.support.runtime.small_models import Block, Blocks, batch, training

FILE = str(MODELS / "odd_forwards.py")


def built(function: str) -> tuple[TrainingModel, Captured]:
    source = load_model(f"{FILE}:{function}")
    model = build_training_model(source)
    captured = capture_model(model, example_batch(source, 2))
    check_repeatable(model, example_batch(source, 2))
    return model, captured


@pytest.mark.slow
@pytest.mark.parametrize("function", ["skipped_by_python", "scaled_by_numpy"])
def test_a_path_that_a_generator_chooses_is_chosen_in_each_step(function: str):
    _, captured = built(function)
    told = (
        "draws numbers from a generator of Python or numpy (tests/support/models/odd_forwards.py:"
    )
    assert any(told in warning for warning in captured.warnings)


@pytest.mark.slow
def test_a_number_that_nothing_uses_leaves_the_layers_apart():
    _, captured = built("drawing")
    assert len(captured.layers) == len(built("plain")[1].layers)


@pytest.mark.slow
def test_a_path_that_changes_from_call_to_call_is_refused():
    calls = itertools.count()

    class Alternating(Blocks):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if next(calls) % 2 else self.last(x)

    with pytest.raises(ModelError, match=r"two captures of the forward differ .*at random") as said:
        check_repeatable(training(Alternating(Block())), batch())
    assert "\n" not in str(said.value)
