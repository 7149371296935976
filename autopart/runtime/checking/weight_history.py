"""Older weights of the plain model, for the check of a run without flushes.

The plain model runs one microbatch at a time. Before a microbatch, each parameter gets its older
value. After the backward it gets the newest value again, so the gradients change the newest
weights.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

Version = Callable[[str, int], int]
"""Weight version for a parameter name and a microbatch, counted through the run.

The version is the number of updates that the weights have seen. It never falls from one microbatch
to the next.
"""


class WeightHistory:
    """All versions of the parameters that later microbatches need."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], version: Version) -> None:
        self._parameters = {n: p for n, p in parameters.items() if p.requires_grad}
        self._version = version
        self._newest = 0
        self._past = {n: {0: p.detach().clone()} for n, p in self._parameters.items()}

    @contextmanager
    def older_weights(self, microbatch: int) -> Generator[None]:
        """In this block the parameters have the microbatch's versions, for forward and backward."""
        older = {
            name: past[self._version(name, microbatch)]
            for name, past in self._past.items()
            if self._version(name, microbatch) < self._newest
        }
        self._put(older)
        yield
        self._put({name: self._past[name][self._newest] for name in older})

    def updated(self, next_microbatch: int) -> None:
        """Record an update, and drop versions that `next_microbatch` and later ones do not need."""
        self._newest += 1
        for name, parameter in self._parameters.items():
            oldest = self._version(name, next_microbatch)
            kept = {v: weights for v, weights in self._past[name].items() if v >= oldest}
            self._past[name] = {**kept, self._newest: parameter.detach().clone()}

    def _put(self, weights: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, values in weights.items():
                self._parameters[name].copy_(values)
