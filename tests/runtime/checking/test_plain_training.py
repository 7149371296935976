"""A check compares two models: a builder that returns one module gives only one."""

import pytest

from autopart.errors import ModelError
from autopart.runtime.capture.capture import capture_model
from autopart.runtime.capture.stage_modules import split_stages
from autopart.runtime.checking.plain_training import check_other
from autopart.runtime.models.model import build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from tests.support.places import MODELS
from tests.support.runtime.stage_chain import random_cuts


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one_for_ever", "plain"])
def test_the_plain_model_has_parameters_of_its_own(kind: str):
    source = load_model(f"{MODELS / 'odd_forwards.py'}:{kind}")
    captured = capture_model(build_training_model(source), example_batch(source, 2))
    programs = split_stages(captured, random_cuts(captured, 2, 0))
    again = build_training_model(source)
    if kind == "plain":
        check_other(again, programs)
        return
    with pytest.raises(ModelError, match=r"returns the same module in each call, .*; build a new"):
        check_other(again, programs)
