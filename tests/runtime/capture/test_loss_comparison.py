"""A trace whose graph fails, or gives another loss, is no trace of its model."""

from dataclasses import replace

import pytest
from torch import fx, nn

from autopart.runtime.capture.loss_comparison import check_loss
from autopart.runtime.capture.torch_export import UncapturableError
from autopart.runtime.capture.uncapturable_modules import trace_model
from tests.support.runtime.small_models import Blocks, batch, training


def test_a_graph_that_fails_beside_its_model_is_refused() -> None:
    """A forward may take another path while it is traced. Its statements then miss their values."""
    model, example = training(Blocks()), batch()
    traced = trace_model(model, example)
    check_loss(model, example, traced)
    failing = fx.GraphModule(nn.Module(), fx.Graph())
    failing.forward = lambda *_: None.shape
    with pytest.raises(UncapturableError, match="no attribute 'shape'"):
        check_loss(model, example, replace(traced, module=failing))
