"""The frontiers (autopart/frontier.py) of all stages between two of N cuts, and the best point of each.

Each frontier grows layer by layer, in the order of execution. What a layer needs depends on the stage's other
layers, on those behind it too, whose gradients wait. Stages that begin with the same steps in the same order grow
from one frontier, which is made once; and only those that are asked for are made, with what they grow from.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from autopart.frontier import Choice, Growth, Limits, Points, needs, no_layers
from autopart.stage_load import Number
from autopart.ways import Step, Steps

Array = npt.NDArray[Any]


TOGETHER = 1 << 14
"""Stages whose frontiers grow side by side."""


def _numbered(codes: Array) -> Array:
    """Codes that would not stay below 2 ** 62 when doubled again and again, by their ranks instead."""
    return codes if codes.max() < 1 << 61 else np.unique(codes, return_inverse=True)[1]


class StagePoints:
    """The frontiers of stages between cuts, as far as they were asked for."""

    def __init__(self, growth: Growth, steps: Steps, ahead: Number) -> None:
        """`ahead` says of each cut which layers lie ahead of it."""
        self.growth, self.steps, self.ahead = growth, steps, ahead
        self._of = np.zeros((len(ahead), len(ahead)), dtype=np.int64)
        """For each stage the number of its frontier: that of no layers where it was not asked for."""
        self._next: dict[tuple[int, Step], int] = {}
        self._grown: list[Points] = [no_layers()]
        self._ended: list[Points] = []
        self._place: dict[int, int] = {}
        """For the number of a frontier whose stage may end there, its place among `_ended`."""
        self._whole = Choice(*(np.zeros(0) for _ in Choice._fields))
        """The points of all of `_ended`, side by side."""
        self._first = np.zeros(1, dtype=np.int64)
        """Where those of each begin, and where the last ones end."""

    def _numbers(self, starts: Array, ends: Array) -> Array:
        """The numbers of the frontiers of some stages: the same for stages with the same steps."""
        asked = np.flatnonzero(self._of[starts, ends] == 0)
        for some in np.array_split(asked, 1 + len(asked) // TOGETHER):
            i, j = starts[some], ends[some]
            self._of[i, j] = self._make(self.ahead[j] & ~self.ahead[i])
        return self._of[starts, ends]

    def _make(self, inside: Array) -> Array:
        """The numbers of the frontiers of stages with the layers `inside`, shape (stages, layers)."""
        numbers = np.zeros(len(inside), dtype=np.int64)
        for at, around in enumerate(self.steps.around):
            here = np.flatnonzero(inside[:, at])
            if not len(here):
                continue
            # Stages in which the same layers lie around this one grow alike from the same frontier.
            seen = numbers[here]
            for other in around:
                seen = _numbered(2 * seen + inside[here, other])
            codes, grown = seen.tolist(), dict[int, int]()
            for row, code in zip(here.tolist(), codes, strict=True):
                if code not in grown:
                    step = self.steps.step(at, inside[row].tolist())
                    grown[code] = self._grow(int(numbers[row]), step)
            numbers[here] = [grown[code] for code in codes]
        return numbers

    def _grow(self, number: int, step: Step) -> int:
        if (number, step) not in self._next:
            self._next[number, step] = len(self._grown)
            self._grown.append(self.growth.grow(self._grown[number], step))
        return self._next[number, step]

    def _end(self, numbers: Array) -> Array:
        """The places of the frontiers of some numbers, which are ended where they are not yet."""
        unlike, which = np.unique(numbers, return_inverse=True)
        new = [number for number in unlike.tolist() if number not in self._place]
        for number in new:
            self._place[number] = len(self._ended)
            self._ended.append(self.growth.ended(self._grown[number]))
        if new:
            columns = ([getattr(own, name) for own in self._ended] for name in Choice._fields)
            self._whole = Choice(*map(np.concatenate, columns))
            self._first = np.cumsum([0, *(len(own.extra_time) for own in self._ended)])
        return np.array([self._place[number] for number in unlike.tolist()])[which]

    def best(self, starts: Array, ends: Array, beside: Array, limits: Limits) -> Choice:
        """For each of some stages between cuts the point that `frontier.best_point` takes. `beside` are a
        stage's bytes on the device but for what its ways change: all where it keeps everything, less its
        workspace."""
        places = self._end(self._numbers(starts, ends))
        alike, group = np.unique(np.stack([places, beside]), axis=1, return_inverse=True)
        counts = np.diff(self._first)[alike[0]]
        starts = np.cumsum(counts) - counts
        at = np.arange(counts.sum()) + np.repeat(self._first[alike[0]] - starts, counts)
        needed, fits = needs(
            self._whole.workspace_bytes[at],
            self._whole.freed_bytes[at],
            self._whole.host_bytes[at],
            np.repeat(alike[1], counts),
            limits,
        )
        none = len(at)
        first = np.minimum.reduceat(np.where(fits, np.arange(none), none), starts)
        least = np.repeat(np.minimum.reduceat(needed, starts), counts)
        fewest = np.minimum.reduceat(np.where(needed == least, np.arange(none), none), starts)
        chosen = at[np.where(first < none, first, fewest)][np.ravel(group)]
        return Choice(*(column[chosen] for column in self._whole))
