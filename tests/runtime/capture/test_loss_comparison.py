"""A trace whose graph fails, or gives another loss, is no trace of its model."""

from dataclasses import replace

import pytest
import torch
from torch import fx, nn

from autopart.runtime.capture.capture import capture_model
from autopart.runtime.capture.loss_comparison import check_loss
from autopart.runtime.capture.torch_export import UncapturableError
from autopart.runtime.capture.uncapturable_modules import trace_model
from tests.support.runtime.small_models import Block, Blocks, batch, training


def test_a_graph_that_fails_beside_its_model_is_refused() -> None:
    """A forward may take another path while it is traced. Its statements then miss their values."""
    model, example = training(Blocks()), batch()
    traced = trace_model(model, example)
    check_loss(model, example, traced)
    failing = fx.GraphModule(nn.Module(), fx.Graph())
    failing.forward = lambda *_: None.shape
    with pytest.raises(UncapturableError, match="no attribute 'shape'"):
        check_loss(model, example, replace(traced, module=failing))


@pytest.mark.slow
def test_a_forward_that_takes_another_path_while_it_is_traced_is_no_graph() -> None:
    """Its own statements run unchanged, and the rest of the graph doubles a value."""

    class Lying(Blocks):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            if x.sum() > -1e9:
                x = self.blocks[0](x)
            if torch.compiler.is_exporting():
                x = x * 2
            return self.last(self.blocks[1](x))

    captured = capture_model(training(Lying(Block(), Block())), batch())
    assert [layer.name for layer in captured.layers] == ["model"]
