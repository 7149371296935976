"""What layers hold where their backward is split."""

import pytest

from autopart.runtime.profiling.halves import take_halves
from autopart.runtime.profiling.subject import prepare_subject


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_linear_layer_keeps_its_input_and_the_gradient_of_its_output(device: str):
    subject = prepare_subject(
        "zoo:mlp-tiny", 2, dtype="float32", device=device, granularity="block"
    )
    first, second, *_, loss = take_halves(subject)
    sizes = {value.name: value.bytes for value in subject.captured.values}
    (between,) = (
        v for v in subject.captured.values if v.consumers == (subject.segments.layers[1].name,)
    )
    assert (second.waiting_bytes, second.waiting_value_bytes) == (sizes[between.name],) * 2
    # The batch is there anyway.
    assert (first.waiting_bytes, first.waiting_value_bytes) == (sizes[between.name], 0)
    assert second.weight_grad_workspace_bytes > 0
    assert (loss.waiting_bytes, loss.weight_grad_workspace_bytes) == (0, 0)
