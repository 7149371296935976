"""The plain model's weights as they were some updates ago, for the check of a run without flushes.

Nothing runs at once here: before a microbatch each parameter is given what it held so many updates
ago, and behind its backward the newest again, so that its gradients change the newest.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

Version = Callable[[str, int], int]
"""Of a parameter and a microbatch, counted through the run: how many updates the weights had seen with
which the microbatch is computed. It never falls from one microbatch to the next."""


class WeightHistory:
    """Every version of the parameters that a microbatch to come meets."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], version: Version) -> None:
        self._parameters = {n: p for n, p in parameters.items() if p.requires_grad}
        self._version = version
        self._newest = 0
        self._past = {n: {0: p.detach().clone()} for n, p in self._parameters.items()}

    @contextmanager
    def met_by(self, microbatch: int) -> Generator[None]:
        """The block to run a microbatch in, forward and backward."""
        older = {
            name: past[self._version(name, microbatch)]
            for name, past in self._past.items()
            if self._version(name, microbatch) < self._newest
        }
        self._put(older)
        yield
        self._put({name: self._past[name][self._newest] for name in older})

    def updated(self, next_microbatch: int) -> None:
        """The parameters were stepped; versions that no microbatch from the next on meets are dropped."""
        self._newest += 1
        for name, parameter in self._parameters.items():
            oldest = self._version(name, next_microbatch)
            kept = {v: held for v, held in self._past[name].items() if v >= oldest}
            self._past[name] = {**kept, self._newest: parameter.detach().clone()}

    def _put(self, weights: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, held in weights.items():
                self._parameters[name].copy_(held)
