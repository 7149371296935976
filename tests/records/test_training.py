import pytest

from autopart.errors import AutopartError
from autopart.records.training import Training, make_training, master_bytes, optimizer_bytes


def test_an_optimizer_keeps_its_numbers_in_the_precision_that_it_steps():
    def state(*words: str) -> tuple[int, int]:
        made = make_training(*words)
        return optimizer_bytes(made), master_bytes(made)

    assert state("float32") == (8, 0)
    assert state("float64") == (16, 0)
    assert state("bfloat16") == (8, 4)
    assert state("bfloat16", "adamw", "bfloat16") == (4, 0)
    assert state("float16", "sgd-momentum") == (4, 4)
    assert state("float32", "sgd") == (0, 0)
    assert state("float32", "adafactor") == (4, 0)
    assert state("bfloat16", "6", "bfloat16") == (6, 0)


def test_training_is_mixed_and_gradients_are_the_weights_own_unless_more_is_said():
    assert make_training("bfloat16") == Training(
        precision="bfloat16-mixed", gradient_dtype="bfloat16"
    )
    assert make_training("float64").gradient_dtype == "float64"
    assert make_training("float16", gradient_dtype="float32").gradient_dtype == "float32"


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"optimizer": "lion"}, "unknown optimizer 'lion'; known: adamw, .* such as 6"),
        ({"optimizer": "-6"}, "unknown optimizer '-6'"),
        (
            {"precision": "bfloat16-mixed"},
            "taken in float32: use float32, or profile the model with --dtype bfloat16$",
        ),
        (
            {"gradient_dtype": "bfloat16"},
            "gradients in bfloat16 do not agree with weights in float32: use float32",
        ),
    ],
)
def test_words_that_do_not_agree_with_the_profile_are_refused(
    asked: dict[str, str], complaint: str
):
    with pytest.raises(AutopartError, match=complaint):
        make_training("float32", zero1=False, **asked)


def test_a_dtype_of_unknown_width_is_refused():
    with pytest.raises(AutopartError, match="'int8' is none of float64"):
        make_training("int8")
