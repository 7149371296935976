"""Bytes that layers keep between I and W."""

import pytest

from autopart.runtime.profiling.profiled_model import prepare_model
from autopart.runtime.profiling.split_backward_bytes import measure_split_backwards


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_linear_layer_keeps_its_input_and_the_gradient_of_its_output(device: str):
    profiled = prepare_model("zoo:mlp-tiny", 2, dtype="float32", device=device, granularity="block")
    first, second, *_, loss = measure_split_backwards(profiled)
    sizes = {value.name: value.bytes for value in profiled.captured.values}
    (between,) = (
        v for v in profiled.captured.values if v.consumers == (profiled.programs.layers[1].name,)
    )
    assert (second.waiting_bytes, second.waiting_value_bytes) == (sizes[between.name],) * 2
    # The batch exists anyway.
    assert (first.waiting_bytes, first.waiting_value_bytes) == (sizes[between.name], 0)
    assert second.weight_grad_workspace_bytes > 0
    assert (loss.waiting_bytes, loss.weight_grad_workspace_bytes) == (0, 0)
