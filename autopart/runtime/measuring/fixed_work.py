"""A fixed piece of work: the multilayer perceptron in a transformer block, forward and backward."""

import torch
from torch.nn import functional


class TransformerMlp:
    """Norm, two products and GELU over so many tokens of so many channels.

    Forward and backward take 40 · tokens · width² operations. Weights are constants, so that nobody's
    random numbers change.
    """

    def __init__(self, device: torch.device, width: int = 256, tokens: int = 1024) -> None:
        rows = torch.linspace(-1.0, 1.0, tokens * width, device=device)
        self._rows = rows.view(tokens, width)
        shapes = ((4 * width, width), (width, 4 * width))
        self._weights = tuple(
            torch.full(shape, 1.0 / width, device=device, requires_grad=True) for shape in shapes
        )

    def run(self) -> None:
        """Run one forward and one backward."""
        up, down = self._weights
        normed = functional.layer_norm(self._rows, self._rows.shape[1:])
        result = functional.linear(functional.gelu(functional.linear(normed, up)), down)
        torch.autograd.grad(result.sum(), self._weights)
