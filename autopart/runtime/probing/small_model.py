"""A model that computes next to nothing: what an action of it takes is the executor's own cost."""

import torch
from torch import nn

_WIDTH, _LAYERS = 8, 2


class Small(nn.Module):
    """Its own loss, of a few small maps."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(_WIDTH, _WIDTH) for _ in range(_LAYERS))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """The mean of what the maps make of the rows."""
        for one in self.maps:
            rows = one(rows)
        return rows.mean()


def build_model() -> nn.Module:
    """The model of a probe."""
    return Small()


def example_inputs(microbatch_size: int) -> tuple[torch.Tensor]:
    """A few rows."""
    return (torch.randn(microbatch_size, _WIDTH),)
