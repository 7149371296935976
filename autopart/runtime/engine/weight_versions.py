"""Weight versions: a stage's weights from earlier updates, for microbatches that started with them.

The newest version is the parameters themselves. Autograd may have saved them for microbatches in
flight. So if a microbatch still needs the current values, the parameters move to new memory before
an update. The old memory remains as the older version, until its last microbatch has run backward.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.func import functional_call

T = TypeVar("T")


class WeightVersions:
    """Versions of a module's parameters; version n has seen n updates."""

    def __init__(self, module: fx.GraphModule, uses: Iterable[int]) -> None:
        """`uses` contains each version as often as there are microbatches that will run with it."""
        self._inside = _Inside(module)
        self._parameters = dict(self._inside.named_parameters())
        self._uses = Counter(uses)
        self._newest = 0
        self._versions = {0: self._aliases()}
        self.most = 1
        """Most versions in memory at once."""

    def run(self, version: int, compute: Callable[[], T]) -> T:
        """Run `compute`, which runs the module forward or backward, with this version's weights."""
        return functional_call(self._inside, self._versions[version], (compute,))

    def done(self, version: int) -> None:
        """Record that a microbatch has run backward with this version."""
        # Step 1: move its gradients to the parameters, which the optimizer steps.
        for name, leaf in self._versions[version].items():
            if leaf.grad is not None:
                parameter = self._parameters[name]
                before = parameter.grad
                parameter.grad = leaf.grad if before is None else before.add_(leaf.grad)
                leaf.grad = None
        # Step 2: free the version if this was its last microbatch.
        self._uses[version] -= 1
        self._drop()

    def update(self, step: Callable[[], None]) -> None:
        """Step the parameters, which makes a new version."""
        # Step 1: if microbatches in flight use the current version, leave its memory to them.
        if self._uses[self._newest]:
            for parameter in self._trained():
                parameter.data = parameter.data.clone()
        # Step 2: step, and register the result as the newest version.
        step()
        self._newest += 1
        self._versions[self._newest] = self._aliases()
        self._drop()
        self.most = max(self.most, len(self._versions))

    def _aliases(self) -> dict[str, torch.Tensor]:
        """Leaf tensors that share the parameters' memory, but not their autograd state.

        Each alias has its own gradient, and its own counter with which autograd detects writes.
        """
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
    """A module whose forward runs any function, so that functional_call can replace parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, compute: Callable[[], Any]) -> Any:
        return compute()
