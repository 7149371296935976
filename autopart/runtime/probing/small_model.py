"""A model that computes almost nothing: its actions take only the executor's overhead."""

import torch
from torch import nn

_WIDTH, _LAYERS = 8, 2


class Small(nn.Module):
    """A few small linear maps that return their own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(_WIDTH, _WIDTH) for _ in range(_LAYERS))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the mean over the maps' result."""
        for one in self.maps:
            rows = one(rows)
        return rows.mean()


def build_model() -> nn.Module:
    """Build the probe's model."""
    return Small()


def example_inputs(microbatch_size: int) -> tuple[torch.Tensor]:
    """Return a few random rows."""
    return (torch.randn(microbatch_size, _WIDTH),)
