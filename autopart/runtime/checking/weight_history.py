"""Older or predicted weights of the plain model, for the check of a run without flushes.

The plain model runs one microbatch at a time. Before a microbatch, each parameter gets its older
value. After the backward it gets the newest value again, so the gradients change the newest
weights. Where weights are predicted, the backward has values of its own: they overwrite those of
the forward, which autograd reads.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import nn

from autopart.runtime.checking.plain_optimizer import Stepped

Version = Callable[[str, int], int]
"""Weight version for a parameter name and a microbatch, counted through the run.

The version is the number of updates that the weights have seen. It never falls from one microbatch
to the next.
"""


class Guess(NamedTuple):
    """Weights predicted from a version, over a number of further updates."""

    version: int
    distance: int


class Guesses(NamedTuple):
    """The guesses that a microbatch runs with, for a parameter name and a microbatch.

    Microbatches count through the run. No version falls from one microbatch to the next.
    """

    forward: Callable[[str, int], Guess]
    backward: Callable[[str, int], Guess]


class History(Protocol):
    """The weights that the plain model runs a microbatch with, and the updates that change them."""

    def weights(self, microbatch: int) -> AbstractContextManager[None]:
        """In this block the parameters have the values of the microbatch's forward."""
        ...

    def before_backward(self, microbatch: int) -> None:
        """Give the parameters the values of the microbatch's backward, within that block."""
        ...

    def updated(self, next_microbatch: int) -> None:
        """Record an update, after which `next_microbatch` comes."""
        ...


class Newest:
    """A plain model that always runs with its newest weights."""

    @contextmanager
    def weights(self, microbatch: int) -> Generator[None]:
        """Change nothing."""
        yield

    def before_backward(self, microbatch: int) -> None:
        """Change nothing."""

    def updated(self, next_microbatch: int) -> None:
        """Record nothing."""


class WeightHistory:
    """All versions of the parameters that later microbatches need."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], version: Version) -> None:
        self._parameters = {n: p for n, p in parameters.items() if p.requires_grad}
        self._version = version
        self._newest = 0
        self._past = {n: {0: p.detach().clone()} for n, p in self._parameters.items()}

    @contextmanager
    def weights(self, microbatch: int) -> Generator[None]:
        """In this block the parameters have the microbatch's versions, for forward and backward."""
        older = {
            name: past[self._version(name, microbatch)]
            for name, past in self._past.items()
            if self._version(name, microbatch) < self._newest
        }
        self._put(older)
        yield
        self._put({name: self._past[name][self._newest] for name in older})

    def before_backward(self, microbatch: int) -> None:
        """Change nothing: the backward has the forward's weights."""

    def updated(self, next_microbatch: int) -> None:
        """Record an update, and drop versions that `next_microbatch` and later ones do not need."""
        self._newest += 1
        for name, parameter in self._parameters.items():
            oldest = self._version(name, next_microbatch)
            kept = {v: weights for v, weights in self._past[name].items() if v >= oldest}
            self._past[name] = {**kept, self._newest: parameter.detach().clone()}

    def _put(self, weights: Mapping[str, torch.Tensor]) -> None:
        _overwrite(self._parameters, weights)


class PredictionHistory:
    """The versions that later microbatches predict their weights from."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        stepped: Callable[[], Mapping[int, Stepped]],
        prediction: Guesses,
    ) -> None:
        """`stepped` has the optimizer's weights and their next change, by the parameter's id."""
        self._parameters = {n: p for n, p in parameters.items() if p.requires_grad}
        self._stepped, self._prediction = stepped, prediction
        self._newest = 0
        at = stepped()
        self._past = {n: {0: at[id(p)]} for n, p in self._parameters.items()}

    @contextmanager
    def weights(self, microbatch: int) -> Generator[None]:
        """In this block the parameters have the values predicted for the microbatch's forward."""
        self._put(self._prediction.forward, microbatch)
        yield
        newest = {name: past[self._newest].value for name, past in self._past.items()}
        _overwrite(self._parameters, newest)

    def before_backward(self, microbatch: int) -> None:
        """Give the parameters the values predicted for the microbatch's backward."""
        self._put(self._prediction.backward, microbatch)

    def updated(self, next_microbatch: int) -> None:
        """Record an update, and drop versions that `next_microbatch` and later ones do not need."""
        self._newest += 1
        at = self._stepped()
        for name, parameter in self._parameters.items():
            oldest = self._prediction.forward(name, next_microbatch).version
            kept = {v: past for v, past in self._past[name].items() if v >= oldest}
            self._past[name] = {**kept, self._newest: at[id(parameter)]}

    def _put(self, guess: Callable[[str, int], Guess], microbatch: int) -> None:
        values: dict[str, torch.Tensor] = {}
        for name, past in self._past.items():
            version, distance = guess(name, microbatch)
            at = past[version]
            values[name] = at.value - distance * at.change
        _overwrite(self._parameters, values)


def _overwrite(parameters: Mapping[str, nn.Parameter], values: Mapping[str, torch.Tensor]) -> None:
    """Change the parameters' memory. Autograd does not notice, and reads the new values."""
    for name, value in values.items():
        parameters[name].data.copy_(value)
