"""Partitions for a plan's own orders: those whose bound under every order is smallest.

Where several stages share a rank, their sum counts, so no program over single stages finds good
partitions. Where paths between cuts are few, all are looked at. Else this is a local search. A
path's value is the largest bound of its groups of ranks (autopart/bounds/any_order_paths.py). Among
equal ones, fuller groups are worse.

Step 1: start from random shares of the work, along one chain of cuts.
Step 2: move one cut, or several cuts in a row by one layer, as long as the value falls.
Step 3: after some starts, shake the best path and descend again.
"""

import itertools
import math
import random
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from autopart.bounds.any_order_paths import PathBounds, Paths
from autopart.bounds.microbatch_path import Matrix
from autopart.cost.cuts import Cuts, allowed
from autopart.records.layouts import Layout
from autopart.records.problem import Problem
from autopart.stopping.time_limit import check_time

FEW = 500
"""Paths along one chain of cuts that are all looked at."""

STARTS, SHAKES = 12, 12
"""Descents from random starts, and from the best path so far."""

NEAR = 10
"""Places that are tried for one cut."""

FULLNESS = 1e-3
"""The weight of fuller groups against the largest bound."""

Path = tuple[int, ...]


def best_paths(
    problem: Problem, layout: Layout, cuts: Cuts, *, most: int
) -> list[tuple[float, Path]]:
    """Up to `most` paths over the cuts, each with its bound in seconds, the smallest first.

    Empty where no path is found whose stages fit.
    """
    if len(layout.stage_ranks) > len(problem.graph.layers):
        return []
    return _Search(problem, layout, cuts).run(most)


class _Search:
    """One local search on one layout."""

    def __init__(self, problem: Problem, layout: Layout, cuts: Cuts) -> None:
        self.bounds = PathBounds(problem, layout, cuts, split=True)
        self.stages, self.cuts = len(layout.stage_ranks), cuts
        self.may = [
            allowed(cuts, problem.graph, problem.demands, stage) for stage in range(self.stages)
        ]
        self.sizes = cuts.ahead.sum(axis=1)
        self.random = random.Random(self.stages)
        self.chain = self._chain_of_cuts()
        work = cuts.totals.forward_time + cuts.totals.backward_time
        self.work = np.broadcast_to(work, cuts.nested.shape)[0, self.chain]
        self.found: dict[Path, float] = {}

    def run(self, most: int) -> list[tuple[float, Path]]:
        """The best paths: of all along the chain where these are few, else where descents ended."""
        inner = self.chain[1:-1].tolist()
        if math.comb(len(inner), self.stages - 1) <= FEW:
            first, last = int(self.chain[0]), int(self.chain[-1])
            every = [
                (first, *ends, last) for ends in itertools.combinations(inner, self.stages - 1)
            ]
            self.found = dict(zip(every, self._values(np.array(every))[1].tolist(), strict=True))
            return self._ranked(most)
        # Step 1: descents from random starts.
        for at in range(STARTS):
            check_time()
            self._descend(self._start(even=at == 0))
        # Step 2: descents from the best path, shaken.
        for _ in range(SHAKES):
            check_time()
            self._descend(self._shaken(min(self.found, key=self.found.__getitem__)))
        return self._ranked(most)

    def _ranked(self, most: int) -> list[tuple[float, Path]]:
        ranked = sorted((value, path) for path, value in self.found.items() if value < np.inf)
        return ranked[:most]

    def _chain_of_cuts(self) -> npt.NDArray[np.int64]:
        """Cuts from the first to the last, each within the next, as many as possible."""
        chain = [0]
        for cut in np.argsort(self.sizes, kind="stable"):
            if self.cuts.nested[chain[-1], cut]:
                chain.append(int(cut))
        return np.array(chain)

    def _start(self, *, even: bool) -> Path:
        """Stages with random shares of the work, or equal ones where `even`."""
        shape = 1e9 if even else self.random.choice((50.0, 3.0, 1.0))
        shares = [self.random.gammavariate(shape, 1.0) for _ in range(self.stages)]
        ends = np.cumsum(shares)[:-1] / sum(shares) * self.work[-1]
        last, k = len(self.chain) - 1, self.stages
        # Each stage has a layer: cut s lies s places from the first at least, and k - s from the last.
        places = np.clip(
            np.searchsorted(self.work, ends), np.arange(1, k), last - np.arange(k - 1, 0, -1)
        )
        for s in range(1, len(places)):
            places[s] = max(places[s], places[s - 1] + 1)
        return (0, *map(int, self.chain[places]), int(self.chain[-1]))

    def _shaken(self, path: Path) -> Path:
        """Some cuts moved at random."""
        shaken = list(path)
        for _ in range(self.random.randint(2, 4) if self.stages > 1 else 0):
            at = self.random.randrange(1, self.stages)
            places = _places(self.cuts, self.sizes, shaken, at)
            shaken[at] = int(self.random.choice(places))
        return tuple(shaken)

    def _descend(self, path: Path) -> None:
        """Move to the best neighbour as long as that is better, and note the end."""
        key, value = self._values(np.array([path]))
        here, best, bound = path, float(key[0]), float(value[0])
        while here not in self.found:
            near = list(near_paths(self.cuts, here))
            if not near:
                break
            keys, values = self._values(np.array(near))
            at = int(np.argmin(keys))
            if keys[at] >= best * (1 - 1e-9):
                break
            here, best, bound = near[at], float(keys[at]), float(values[at])
        self.found.setdefault(here, bound)

    def _values(self, paths: Paths) -> tuple[Matrix, Matrix]:
        """For each path a key to compare by, and its bound in seconds."""
        groups = self.bounds.of_groups(paths)
        fits = np.isfinite(groups)
        # Groups that lack memory count as twice the largest bound each.
        largest = np.where(fits, groups, 0.0).max(axis=1)
        full = np.where(fits, groups / np.maximum(largest, 1e-300)[:, None], 1.0) ** 8
        # A stage that breaks a pin or a group of layers counts likewise.
        broken = sum(
            (~may[paths[:, stage], paths[:, stage + 1]]).astype(int)
            for stage, may in enumerate(self.may)
        )
        lacking = (~fits).sum(axis=1) + broken
        keys = largest * (1 + FULLNESS * full.mean(axis=1) + 2 * lacking)
        return keys, np.where(broken > 0, np.inf, groups.max(axis=1))


def near_paths(cuts: Cuts, path: Path) -> Iterator[Path]:
    """Paths with one other cut, or with several cuts in a row moved by one place."""
    sizes, stages = cuts.ahead.sum(axis=1), len(path) - 1
    for at in range(1, stages):
        for place in _places(cuts, sizes, path, at):
            if place != path[at]:
                yield (*path[:at], int(place), *path[at + 1 :])
    # A chain's cuts have the places of their sizes, so a neighbour is the next number.
    if not bool((np.diff(sizes) == 1).all()):
        return
    for a, z in itertools.combinations(range(1, stages), 2):
        if path[a] - path[a - 1] > 1:
            yield (*path[:a], *(cut - 1 for cut in path[a : z + 1]), *path[z + 1 :])
        if path[z + 1] - path[z] > 1:
            yield (*path[:a], *(cut + 1 for cut in path[a : z + 1]), *path[z + 1 :])


def _places(
    cuts: Cuts, sizes: npt.NDArray[np.int64], path: Sequence[int], at: int
) -> npt.NDArray[np.int64]:
    """The cuts nearest to cut `at` that may stand in its place."""
    places = np.flatnonzero(cuts.nested[path[at - 1]] & cuts.nested[:, path[at + 1]])
    distance = np.abs(sizes[places] - sizes[path[at]])
    return places[np.argsort(distance, kind="stable")[:NEAR]]
