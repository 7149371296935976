"""Models that draw from generators outside torch, while they are captured."""

import numpy as np
import pytest
import torch

from autopart.runtime.capture.capture import Captured, capture_model
from autopart.runtime.models.host_generators import HostGenerators, moved
from autopart.runtime.models.model import build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from tests.support.models import drawing


def captured_model(name: str = "wandering") -> Captured:
    source = load_model(f"tests/support/models/drawing.py:{name}")
    return capture_model(build_training_model(source), example_batch(source, 2))


@pytest.mark.slow
def test_statements_that_skip_all_in_one_run_pass_gradients_on_in_others() -> None:
    captured = captured_model()
    assert [layer.name for layer in captured.layers] == [
        "blocks.0",
        "blocks.1",
        "blocks.2",
        "blocks.3",
    ]
    assert len(captured.warnings) == 2  # two statements draw, each by itself
    # The generator skips the first block of the example.
    assert all(value.has_gradient for value in captured.values)


@pytest.mark.slow
def test_a_capture_leaves_all_generators_as_they_were() -> None:
    generators = HostGenerators([drawing.wandering()])
    torch.manual_seed(3)
    before = generators.states()
    for name in ("wandering", "pythons_numbers"):
        captured_model(name)
    assert generators.states() == before


def test_generators_of_modules_and_of_their_files_are_found_and_seeded_by_name() -> None:
    model, other = drawing.Wandering(), drawing.Wandering()
    states = HostGenerators([model]).states()
    numbers = []
    for one in (model, other):
        generators = HostGenerators(one.modules())
        generators.seed(5)
        numbers.append([one.numbers.random(), one.others.random(), drawing.NUMBERS.random()])
        assert moved(states, generators.states()) == [
            *("random", "numpy.random", "generators of the model's own"),
        ]
    assert numbers[0] == numbers[1]
    assert len(set(numbers[0])) == 3
    generators = HostGenerators([model])
    generators.restore(states)
    assert generators.states() == states
    assert np.random.get_state()[0] == states[1][0]
