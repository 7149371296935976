"""A trace compared with its model: one forward of each must give the same loss."""

import torch

from autopart.runtime.capture.call_recorder import state_restored
from autopart.runtime.capture.host_draws import draws_noted
from autopart.runtime.capture.lone_export import reason_of
from autopart.runtime.capture.torch_export import UncapturableError
from autopart.runtime.capture.tracing import Traced
from autopart.runtime.models.model import Batch, TrainingModel


def check_loss(model: TrainingModel, batch: Batch, traced: Traced) -> None:
    """Run model and graph once.

    Raises UncapturableError where the graph fails, or where their losses differ: a forward may take
    another path while it is traced.
    """
    leaves = [leaf.value for leaf in traced.leaves if isinstance(leaf.value, torch.Tensor)]
    losses: list[torch.Tensor] = []
    for run, given in ((model, batch), (traced.module, leaves)):
        with state_restored(model), draws_noted(model):
            torch.manual_seed(0)
            try:
                losses.append(run(*given).detach())
            except Exception as error:  # the user's statements may raise anything here
                if run is model:
                    raise
                raise UncapturableError(reason_of(error)) from None
    if not torch.allclose(losses[0], losses[1], rtol=1e-2, atol=1e-6, equal_nan=True):
        raise UncapturableError("the statements give another loss outside their function")
