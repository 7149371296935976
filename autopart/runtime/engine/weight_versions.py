"""Weight versions: a stage's weights from earlier updates, for microbatches that started with them.

The newest version is the parameters themselves. Autograd may have saved them for microbatches in
flight. So if a microbatch still needs the current values, the parameters move to new memory before
an update. The old memory remains as the older version, until its last microbatch has run backward.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import fx, nn
from torch.func import functional_call

from autopart.schedules.actions import Action

Leaves = dict[str, torch.Tensor]
"""Leaf tensors by parameter name, with which a module runs in place of its parameters."""


class StageWeights(Protocol):
    """The weights that a stage's actions run with, in a run without flushes."""

    seen: dict[int, int]
    """Updates that the newest weights of its forward had seen, by microbatch."""
    most: int
    """Most copies of the weights in memory at once, the newest included."""

    def run(self, action: Action, compute: Callable[[], None]) -> None:
        """Run `compute`, which runs the module for the action, with the action's weights."""
        ...

    def update(self, step: Callable[[], None]) -> None:
        """Step the parameters, which makes a new version."""
        ...


class WeightVersions:
    """Versions of a module's parameters; version n has seen n updates."""

    def __init__(self, module: fx.GraphModule, version: Mapping[int, int]) -> None:
        """`version` has each microbatch's version, with which it runs forward and backward."""
        self._module = ReplaceableWeights(module)
        self.seen = dict(version)
        self._uses = Counter(version.values())
        self._newest = 0
        self._versions = {0: self._module.aliases()}
        self.most = 1

    def run(self, action: Action, compute: Callable[[], None]) -> None:
        """Run `compute`, which runs the module for the action, with its microbatch's version."""
        version = self.seen[action.microbatch]
        self._module.run(action, self._versions[version], compute)
        if action.op == "B":
            self._uses[version] -= 1
            self._drop()

    def update(self, step: Callable[[], None]) -> None:
        """Step the parameters, which makes a new version."""
        # Step 1: if microbatches in flight use the current version, leave its memory to them.
        if self._uses[self._newest]:
            for parameter in self._module.trained.values():
                parameter.data = parameter.data.clone()
        # Step 2: step, and register the result as the newest version.
        step()
        self._newest += 1
        self._versions[self._newest] = self._module.aliases()
        self._drop()
        self.most = max(self.most, len(self._versions))

    def _drop(self) -> None:
        for version in list(self._versions):
            if version != self._newest and not self._uses[version]:
                del self._versions[version]


class ReplaceableWeights(nn.Module):
    """A module that runs with other tensors in place of its parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._named = dict(self.named_parameters())
        self.trained = {name: p for name, p in self._named.items() if p.requires_grad}
        """The parameters that an update changes, by name."""

    def run(self, action: Action, leaves: Leaves, compute: Callable[[], None]) -> None:
        """Run `compute` with `leaves`. A backward adds their gradients to the parameters'."""
        takes = self.trained.items() if action.op == "B" else ()
        for name, parameter in takes:
            leaves[name].grad, parameter.grad = parameter.grad, None
        functional_call(self, leaves, (compute,))
        for name, parameter in takes:
            parameter.grad, leaves[name].grad = leaves[name].grad, None

    def aliases(self) -> Leaves:
        """Leaf tensors that share the parameters' memory, but not their autograd state.

        Each alias has its own gradient, and its own counter with which autograd detects writes.
        """
        return {
            name: parameter.data.requires_grad_(parameter.requires_grad)
            for name, parameter in self._named.items()
        }

    def forward(self, compute: Callable[[], Any]) -> Any:
        """Run any function, so that functional_call can replace parameters during it."""
        return compute()
