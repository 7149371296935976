"""The fewest seconds that recomputing adds, so that a number of stash bytes is freed.

Layers may have parts of their policies: pieces of each layer's lower convex line through its policies, the cheapest bytes
first. That is the optimum of a linear program, so no plan adds fewer seconds.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.activations.policies import allowed_policies, kept_inside
from autopart.records.layer_graph import Layer
from autopart.records.problem import Demands


class LeastRecomputing(NamedTuple):
    """The fewest seconds for stash that is freed: points of a convex line."""

    freed: npt.NDArray[np.float64]
    seconds: npt.NDArray[np.float64]
    stash: int
    """Bytes where every layer keeps its stash."""

    def least(self, room: float) -> float:
        """The fewest seconds for stash of so many bytes; infinite where no policy frees enough."""
        needed = self.stash - room
        if needed <= 0:
            return 0.0
        if needed > self.freed[-1]:
            return float("inf")
        return float(np.interp(needed, self.freed, self.seconds))


def least_recomputing(layers: Sequence[Layer], demands: Demands) -> LeastRecomputing:
    """The seconds by bytes freed, over some layers."""
    steps = [step for layer in layers for step in pieces(layer, demands)]
    steps.sort(key=lambda step: step[1] / step[0])
    freed, seconds = np.array([(0.0, 0.0), *steps]).T
    stash = sum(layer.stash_bytes for layer in layers)
    return LeastRecomputing(np.cumsum(freed), np.cumsum(seconds), stash)


def pieces(layer: Layer, demands: Demands) -> list[tuple[float, float]]:
    """Bytes and seconds of each piece of the lower convex line through a layer's policies, from the fewest freed bytes on."""
    again = {"recompute": layer.recompute, "selective": layer.selective}
    points: list[tuple[float, float]] = [(0.0, 0.0)]
    for policy in allowed_policies(layer, demands):
        of = again.get(policy)
        extra = of.extra_time if of is not None else 0.0
        points.append((float(layer.stash_bytes - kept_inside(layer, policy)), extra))
    line: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        # A point that frees more in no more seconds makes the one before it needless; so does one below the line.
        while line and (
            line[-1][1] >= y
            or (len(line) > 1 and _slope(line[-2], line[-1]) >= _slope(line[-1], (x, y)))
        ):
            if line[-1] == (0.0, 0.0) and y > 0:
                break
            line.pop()
        line.append((x, y))
    first = line[0]
    free = [(first[0], 0.0)] if first[0] > 0 else []
    return free + [
        (there[0] - here[0], there[1] - here[1])
        for here, there in itertools.pairwise(line)
        if there[0] > here[0]
    ]


def _slope(here: tuple[float, float], there: tuple[float, float]) -> float:
    return (there[1] - here[1]) / max(there[0] - here[0], 1e-300)
