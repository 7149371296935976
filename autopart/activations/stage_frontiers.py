"""Frontiers (autopart/activations/frontier.py) for stages between cuts, and each stage's best point.

A frontier grows layer by layer, in the order of execution. A layer's figures depend on the other layers in its stage,
also on later ones, whose gradients wait. Stages that begin with the same layers and figures share a frontier up to
there. A frontier is made once, when a stage first asks for it.
"""

import numpy as np
import numpy.typing as npt

from autopart.activations.changes import PolicyChanges
from autopart.activations.chooser import Beside, best_points
from autopart.activations.frontier import Growth
from autopart.activations.points import Points, no_layers
from autopart.activations.stage_layers import StageLayer, StageLayers
from autopart.cost.memory_limits import Limits
from autopart.cost.stage_totals import Array
from autopart.stopping.time_limit import check_time

Whole = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

TOGETHER = 1 << 14
"""Stages whose frontiers grow side by side."""


def _numbered(codes: Whole) -> Whole:
    """Codes, or their ranks where doubling them again and again would overflow 62 bits."""
    return codes if codes.max() < 1 << 61 else np.unique(codes, return_inverse=True)[1]


class StageFrontiers:
    """The frontiers for stages between cuts that were asked for."""

    def __init__(self, growth: Growth, layers: StageLayers, ahead: Bools) -> None:
        """`ahead` says which layers lie ahead of each cut, shape (cuts, layers)."""
        self.growth, self.layers, self.ahead = growth, layers, ahead
        self._of = np.zeros((len(ahead), len(ahead)), dtype=np.int64)
        """For each stage its frontier's number; 0, a frontier without layers, until the stage is asked for."""
        self._next: dict[tuple[int, StageLayer], int] = {}
        """For a frontier and one more layer the grown frontier's number."""
        self._grown: list[Points] = [no_layers()]
        self._ended: list[Points] = []
        self._place: dict[int, int] = {}
        """For a frontier at which some stage ends, its place in `_ended`."""
        self._whole = PolicyChanges(*(np.zeros(0) for _ in PolicyChanges._fields))
        """All points in `_ended`, one frontier after the other."""
        self._first = np.zeros(1, dtype=np.int64)
        """For each frontier the place in `_whole` where its points begin; then where the last ones end."""

    def best(
        self, starts: Whole, ends: Whole, beside: Beside, limits: Limits
    ) -> PolicyChanges[Array]:
        """The changes at the best point, for some stages between cuts; `beside` as in `best_points`."""
        places = self.numbers(starts, ends)
        # Stages with the same frontier and the same bytes beside it take the same point: each is chosen once.
        alike, group = np.unique(np.stack([places, *beside.bytes]), axis=1, return_inverse=True)
        counts = np.diff(self._first)[alike[0]]
        begins = np.cumsum(counts) - counts
        at = np.arange(counts.sum()) + np.repeat(self._first[alike[0]] - begins, counts)
        points = PolicyChanges(*(column[at] for column in self._whole))
        unlike = beside._replace(bytes=tuple(alike[1:]))
        chosen = best_points(points, counts, unlike, limits)[np.ravel(group)]
        return PolicyChanges(*(column[chosen] for column in points))

    def numbers(self, starts: Whole, ends: Whole) -> Whole:
        """The frontiers of some stages, as numbers for `ended` and `changes`."""
        return self._end(self._grown_numbers(starts, ends))

    def ended(self, number: int) -> Points:
        """A frontier by its number."""
        return self._ended[number]

    def lengths(self, numbers: Whole) -> Whole:
        """How many points each frontier has."""
        return np.diff(self._first)[numbers]

    def changes(self, numbers: Whole, points: Whole) -> PolicyChanges[Array]:
        """The changes at one point of each frontier."""
        at = self._first[numbers] + points
        return PolicyChanges(*(column[at] for column in self._whole))

    def _grown_numbers(self, starts: Whole, ends: Whole) -> Whole:
        """The numbers of frontiers before their stages end."""
        asked = np.flatnonzero(self._of[starts, ends] == 0)
        for some in np.array_split(asked, 1 + len(asked) // TOGETHER):
            i, j = starts[some], ends[some]
            self._of[i, j] = self._grow_along(self.ahead[j] & ~self.ahead[i])
        return self._of[starts, ends]

    def _grow_along(self, inside: Bools) -> Whole:
        """The frontiers' numbers for stages with the layers `inside`, shape (stages, layers)."""
        numbers = np.zeros(len(inside), dtype=np.int64)
        for at, around in enumerate(self.layers.around):
            # Step 1: the stages with this layer.
            here = np.flatnonzero(inside[:, at])
            if not len(here):
                continue
            # Step 2: a code for the frontier that a stage has reached and the layers around this one.
            seen = numbers[here]
            for other in around:
                seen = _numbered(2 * seen + inside[here, other])
            # Step 3: one grown frontier for each code, from the first stage that has it.
            codes, grown = seen.tolist(), dict[int, int]()
            for row, code in zip(here.tolist(), codes, strict=True):
                if code not in grown:
                    layer = self.layers.in_stage(at, inside[row].tolist())
                    grown[code] = self._grow(int(numbers[row]), layer)
            numbers[here] = [grown[code] for code in codes]
        return numbers

    def _grow(self, number: int, layer: StageLayer) -> int:
        if (number, layer) not in self._next:
            check_time()
            # A search may be stopped while a frontier grows: nothing is noted before.
            grown = self.growth.grow(self._grown[number], layer)
            self._grown.append(grown)
            self._next[number, layer] = len(self._grown) - 1
        return self._next[number, layer]

    def _end(self, numbers: Whole) -> Whole:
        """The places in `_ended` for some frontiers; a frontier at which no stage ended before is ended now."""
        unlike, which = np.unique(numbers, return_inverse=True)
        new = [number for number in unlike.tolist() if number not in self._place]
        if new:
            ended = [*self._ended, *(self.growth.ended(self._grown[number]) for number in new)]
            columns = ([getattr(own, name) for own in ended] for name in PolicyChanges._fields)
            self._whole = PolicyChanges(*map(np.concatenate, columns))
            self._first = np.cumsum([0, *(len(own.extra_time) for own in ended)])
            places = range(len(self._ended), len(ended))
            self._ended = ended
            self._place.update(zip(new, places, strict=True))
        return np.array([self._place[number] for number in unlike.tolist()])[which]
