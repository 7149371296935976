"""Fakes for modules: what a trace may give them that the recorded calls did not."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from autopart.runtime.capture.call_recorder import ModuleCall
from autopart.runtime.capture.fake_modules import FakeModules
from autopart.runtime.capture.opaque_operation import OpaqueOperation
from autopart.runtime.capture.torch_export import UncapturableError


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(2, 2)


def call(width: int, times: int) -> ModuleCall:
    """A call with two sizes of its output."""
    return ModuleCall((torch.ones(1, 2), times), {}, torch.ones(1, width), writes_inputs=False)


def traced_width(recorded: list[ModuleCall], times: int) -> int:
    """The width of the fake's output where a trace calls it with another constant."""
    model, operation = Model(), OpaqueOperation()
    fakes = FakeModules(model, {"block": recorded}, operation)

    def forward(x: torch.Tensor) -> torch.Tensor:
        return model.block(x, times)

    with operation.defined(), fakes.installed():
        graph = make_fx(forward, tracing_mode="fake")(torch.ones(1, 2))
    (output,) = next(node for node in graph.graph.nodes if node.op == "output").args
    return output.meta["val"].shape[1]


def test_other_arguments_in_a_trace_take_the_output_that_all_recorded_calls_had() -> None:
    assert traced_width([call(3, 1), call(3, 2)], times=5) == 3
    assert traced_width([call(3, 1), call(4, 2)], times=2) == 4


def test_other_arguments_in_a_trace_are_refused_where_the_recorded_outputs_differ() -> None:
    with pytest.raises(UncapturableError, match="'block' takes other arguments in a trace"):
        traced_width([call(3, 1), call(4, 2)], times=5)
