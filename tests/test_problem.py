import pytest

from autopart.errors import AutopartError
from autopart.problem import optimizer_bytes


def test_training_in_16_bits_adds_a_master_copy():
    assert optimizer_bytes("adamw", "float32") == 8
    assert optimizer_bytes("adamw", "bfloat16") == 12
    assert optimizer_bytes("sgd", "float32") == 0
    with pytest.raises(AutopartError, match="unknown optimizer 'lion'; known: adamw"):
        optimizer_bytes("lion", "float32")
