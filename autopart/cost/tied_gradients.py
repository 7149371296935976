"""Gradients for one tied parameter on a stage: those that wait for an earlier layer, and the sum that stays."""

import numpy as np
import numpy.typing as npt

from autopart.cost.stages import Places, StagesBetweenCuts
from autopart.records.layer_graph import LayerGraph, positions

Whole = npt.NDArray[np.int64]


def behind_each(per_layer: Whole) -> Whole:
    """For each cut, sums over the layers ahead of it: over all, then for each layer over the layers behind it."""
    cuts, layers = per_layer.shape
    behind = np.zeros((cuts, layers + 1), dtype=np.int64)
    np.cumsum(per_layer[:, ::-1], axis=1, out=behind[:, -2::-1])
    return behind


class TiedGradients:
    """Waiting gradients for one tied parameter: B leaves one in each of its layers on a stage, except the first."""

    def __init__(self, graph: LayerGraph, stages: StagesBetweenCuts, number: int) -> None:
        place, tied = positions(graph), graph.tied[number]
        holds = np.zeros(len(graph.layers), dtype=np.int64)
        holds[[place[name] for name in tied.layers]] = 1
        self.grad_bytes, self.holds = tied.grad_bytes, holds
        self.made_bytes = tied.grad_bytes + (tied.unscattered_grad_bytes or 0)
        self.behind = behind_each(stages.ahead_as_numbers * holds)
        """For each cut the parameter's layers ahead: all, then for each layer the ones behind it."""

    def at_the_end(self, stages: StagesBetweenCuts) -> Whole:
        return self.grad_bytes * np.maximum(stages.between(self.behind[:, 0]) - 1, 0)

    def while_running(self, places: Places) -> Whole:
        behind = places.inside(self.behind[:, 1:])
        first = self.behind[:, 0]
        whole = first[places.end] - first[places.start]
        # Where all its layers on the stage lie behind, the first one leaves nothing waiting.
        return self.grad_bytes * np.maximum(behind - (behind == whole), 0)

    def made_at_the_end(self, stages: StagesBetweenCuts) -> Whole:
        return self.made_bytes * (stages.between(self.behind[:, 0]) > 0)

    def made_while_running(self, places: Places) -> Whole:
        """The gradient itself, where all its layers on the stage have run or are running."""
        first, here = self.behind[:, 0], self.holds[places.layer]
        whole = first[places.end] - first[places.start]
        there = (whole > 0) & (places.inside(self.behind[:, 1:]) + here == whole)
        return self.made_bytes * there
