"""The place of an error is the user's line, also where autopart, torch or a library raised it."""

import json
from collections.abc import Callable
from traceback import extract_tb

import pytest
import torch
from torch import nn

from autopart.errors import ModelError
from autopart.runtime.models.precision import dtype_of
from autopart.runtime.models.user_code import error_place, shown_path, user_code


def calls_autopart() -> object:
    return dtype_of("odd")


def calls_torch() -> object:
    return nn.Sequential(nn.Linear(2, 2))(torch.zeros(3))


def calls_a_library() -> object:
    return json.loads("{")


@pytest.mark.parametrize("call", [calls_autopart, calls_torch, calls_a_library])
def test_the_place_of_an_error_is_the_user_s_line_that_led_there(call: Callable[[], object]):
    with pytest.raises((ModelError, RuntimeError, ValueError)) as raised:
        call()
    assert error_place(raised.value) == f"{shown_path(__file__)}:{call.__code__.co_firstlineno + 1}"


def test_the_line_of_an_error_has_its_place_and_its_advice():
    said = rf"forward raised RuntimeError: .* \({shown_path(__file__)}:\d+\); look there$"
    with pytest.raises(ModelError, match=said), user_code("forward", "look there"):
        calls_torch()


def test_an_error_whose_frames_are_all_torch_s_has_no_place():
    with pytest.raises(RuntimeError) as raised:
        nn.Sequential(nn.Linear(2, 2))(torch.zeros(3))
    error = raised.value
    assert error.__traceback__ is not None
    below = error.with_traceback(error.__traceback__.tb_next)
    assert extract_tb(below.__traceback__) and error_place(below) is None
