"""The weights of one stage as they were some updates ago, for microbatches that began with them.

The newest version is the parameters themselves. Autograd may have saved them for the backward of
microbatches in flight, so before an optimizer writes into them they move to fresh memory where a
microbatch still needs what they hold; what it needs lives on without them.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.func import functional_call

T = TypeVar("T")


class WeightVersions:
    """Versions of a module's parameters, counted from 0 by the updates that they have seen."""

    def __init__(self, module: fx.GraphModule, uses: Iterable[int]) -> None:
        """`uses` names a version once for each microbatch that is to be computed with it."""
        self._inside = _Inside(module)
        self._parameters = dict(self._inside.named_parameters())
        self._uses = Counter(uses)
        self._newest = 0
        self._versions = {0: self._aliases()}
        self.most = 1
        """The most versions that were held at once."""

    def run(self, version: int, deed: Callable[[], T]) -> T:
        """Do what runs the module, forward or backward, with this version's weights in it."""
        return functional_call(self._inside, self._versions[version], (deed,))

    def done(self, version: int) -> None:
        """A microbatch's backward has run: its gradients go to the parameters' ``grad``."""
        for name, leaf in self._versions[version].items():
            if leaf.grad is not None:
                parameter = self._parameters[name]
                before = parameter.grad
                parameter.grad = leaf.grad if before is None else before.add_(leaf.grad)
                leaf.grad = None
        self._uses[version] -= 1
        self._drop()

    def update(self, step: Callable[[], None]) -> None:
        """Step the parameters, which makes a new version of them."""
        if self._uses[self._newest]:
            for parameter in self._trained():
                parameter.data = parameter.data.clone()
        step()
        self._newest += 1
        self._versions[self._newest] = self._aliases()
        self._drop()
        self.most = max(self.most, len(self._versions))

    def _aliases(self) -> dict[str, torch.Tensor]:
        """Leaves of their own in the same memory: their gradients, and autograd's watch over what is
        written into them, are theirs alone."""
        return {
            name: parameter.data.requires_grad_(parameter.requires_grad)
            for name, parameter in self._parameters.items()
        }

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self._parameters.values() if p.requires_grad]

    def _drop(self) -> None:
        for version in list(self._versions):
            if version != self._newest and not self._uses[version]:
                del self._versions[version]


class _Inside(nn.Module):
    """Does things while the module's parameters are replaced."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, deed: Callable[[], Any]) -> Any:
        return deed()
