"""Predicted weights: a stage's forwards and backwards run with guesses of later weights.

SpecTrain, XPipe and PipeOptim keep one set of weights and predict others from it. A prediction
covers a number of updates, the distance, along the optimizer's last change:

    W(t + s) = W(t) - s * lr * dW(t)

The forward and the backward of one microbatch may run with different weights. As in the authors'
code, the backward's weights overwrite the forward's where autograd reads them. So all actions run
with one working copy, and its values change between actions. A tensor that an operation computed
from weights and saved, such as a cast, stays as in the forward.

    update        the newest weights W(t), in the parameters; the optimizer never sees a prediction
    F, B          fill the working copy from W(t), or keep it if it already has these values
    batch         all forwards of one update use the weights predicted before the first of them
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import fx, nn

from autopart.runtime.engine.weight_versions import Leaves, ReplaceableWeights
from autopart.schedules.actions import Action

Predict = Callable[[nn.Parameter, int, torch.Tensor], None]
"""Writes a parameter's weights after a number of further updates into a tensor of its shape."""


class Distances(NamedTuple):
    """Updates over which a stage predicts its weights."""

    forward: int
    backward: int


class _Contents(NamedTuple):
    """Values of the working copy: weights of a version, predicted over a distance."""

    version: int
    distance: int


class PredictedWeights:
    """The newest weights of a module, and one working copy with predicted values."""

    def __init__(
        self,
        module: fx.GraphModule,
        distances: Distances,
        microbatches: Sequence[int],
        per_update: int,
        predict: Predict,
    ) -> None:
        """`microbatches` are those that the module will run, `per_update` of them to an update.

        Without any distance the module runs with the parameters themselves.
        """
        self._module = ReplaceableWeights(module)
        self._distances, self._per_update, self._predict = distances, per_update, predict
        self._working = self._module.aliases()
        self._has_copy = max(distances) > 0
        if self._has_copy:
            self._working |= _like(self._module.trained, requires_grad=True)
        self._holds: _Contents | None = None
        # Forwards still to run, by update.
        self._left = Counter(m // per_update for m in microbatches)
        self._batch, self._forward = -1, _Contents(0, 0)
        self._kept: Leaves | None = None
        self._newest = 0
        self.seen: dict[int, int] = {}
        self.most = 1 + self._has_copy

    def run(self, action: Action, compute: Callable[[], None]) -> None:
        """Run `compute`, which runs the module for the action, with predicted weights."""
        batch = action.microbatch // self._per_update
        if action.op == "F":
            if batch != self._batch:
                self._batch = batch
                self._forward = _Contents(self._newest, self._distances.forward)
            self.seen[action.microbatch] = self._forward.version
            self._hold(self._forward)
            self._left[batch] -= 1
            if not self._left[batch]:
                self._kept = None
        else:
            self._hold(_Contents(self._newest, self._distances.backward))
        self._module.run(action, self._working, compute)

    def update(self, step: Callable[[], None]) -> None:
        """Step the parameters, which makes a new version."""
        # Step 1: keep the predicted weights of a batch whose forwards are not over.
        is_due = self._left[self._batch] > 0 and self._kept is None
        if self._has_copy and self._batch >= 0 and is_due:
            self._kept = _like(self._module.trained, requires_grad=False)
            self._fill(self._kept, self._forward.distance)
            self.most = 3
        # Step 2: step. Actions run with the working copy, so the parameters change in place.
        step()
        self._newest += 1

    def _hold(self, values: _Contents) -> None:
        """Fill the working copy with these values, unless it has them."""
        if not self._has_copy or values == self._holds:
            return
        if values.version == self._newest:
            self._fill(self._working, values.distance)
        else:
            assert self._kept is not None and values == self._forward
            for name, kept in self._kept.items():
                self._working[name].data.copy_(kept)
        self._holds = values

    def _fill(self, leaves: Leaves, distance: int) -> None:
        for name, parameter in self._module.trained.items():
            self._predict(parameter, distance, leaves[name].data)


def _like(trained: dict[str, nn.Parameter], *, requires_grad: bool) -> Leaves:
    return {
        name: torch.empty_like(p, requires_grad=False).requires_grad_(requires_grad)
        for name, p in trained.items()
    }
