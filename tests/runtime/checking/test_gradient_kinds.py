"""The check compares which parameters have a gradient: zeros are not none."""

import pytest
import torch
from torch import nn

from autopart.errors import RunError
from autopart.runtime.checking.check import CheckRecord, Deviation
from autopart.runtime.checking.gradient_kinds import (
    NONE,
    NUMBERS,
    ZEROS,
    GradientKinds,
    told,
    unequal_kinds,
)
from autopart.runtime.checking.reference_run import ReferenceRun
from autopart.runtime.checking.verdict import outcome


def test_the_kinds_of_each_step_are_collected() -> None:
    parameters = {name: nn.Parameter(torch.ones(2)) for name in ("always", "zeros", "never")}
    kinds = GradientKinds()
    for step in range(2):
        parameters["always"].grad = torch.tensor([0.0, 1.0])
        parameters["zeros"].grad = torch.zeros(2) if step else None
        kinds.add(parameters)
    assert kinds.of_steps() == {
        "always": bytes([NUMBERS, NUMBERS]),
        "zeros": bytes([NONE, ZEROS]),
        "never": bytes([NONE, NONE]),
    }


@pytest.mark.parametrize("mine", [NONE, ZEROS, NUMBERS])
@pytest.mark.parametrize("plain", [NONE, ZEROS, NUMBERS])
def test_only_a_gradient_that_one_model_lacks_is_unequal(mine: int, plain: int) -> None:
    found = unequal_kinds({"w": bytes([ZEROS, mine])}, {"w": bytes([NUMBERS, plain])})
    assert bool(found) == ((mine == NONE) != (plain == NONE))
    for one in found:
        assert (one.step, one.counts) == (1, NUMBERS in (mine, plain))


def test_a_parameter_that_no_rank_has_is_not_compared() -> None:
    assert not unequal_kinds({}, {"w": bytes([NUMBERS])})


def test_a_message_names_the_step_in_which_numbers_are_missing() -> None:
    mine = {"a": bytes([ZEROS]), "w": bytes([ZEROS, NONE])}
    plain = {"a": bytes([NONE]), "w": bytes([NONE, NUMBERS])}
    assert told(unequal_kinds(mine, plain)) == (
        "'w' has no gradient in step 2, in the plain model a gradient, and 1 more"
    )


def record(mine: int, plain: int, optimizer: str) -> CheckRecord:
    """A check in which all else is equal."""
    weight = {"w": torch.ones(2)}
    reference = ReferenceRun((1.0,), torch.float32, weight, weight, weight, weight, {})
    check = CheckRecord(reference, "float32", 1, optimizer, lr=0.1)
    for found in (check.gradients, check.first_update, check.parameters):
        found.append(Deviation("w", 0, 0.0, 1e-5))
    check.unequal_kinds = unequal_kinds({"w": bytes([mine])}, {"w": bytes([plain])})
    return check


def test_zeros_in_place_of_no_gradient_are_a_note_under_sgd() -> None:
    for mine, plain in ((ZEROS, NONE), (NONE, ZEROS)):
        (note,) = outcome(record(mine, plain, "sgd"), (1.0,), 0, ()).notes
        assert note.endswith(": equal under sgd, not with momentum or weight decay")
    assert outcome(record(ZEROS, ZEROS, "sgd"), (1.0,), 0, ()).notes == ()


@pytest.mark.parametrize(
    ("mine", "plain", "optimizer"),
    [
        (ZEROS, NONE, "adamw"),
        (NONE, ZEROS, "sgd-momentum"),
        (ZEROS, NONE, "adafactor"),
        (NONE, NUMBERS, "sgd"),
        (NUMBERS, NONE, "sgd"),
    ],
)
def test_what_the_optimizer_moves_in_one_model_only_is_an_error(
    mine: int, plain: int, optimizer: str
) -> None:
    with pytest.raises(RunError, match=f"'w' has .* in step 1, .*; {optimizer} moves a parameter"):
        outcome(record(mine, plain, optimizer), (1.0,), 0, ())
