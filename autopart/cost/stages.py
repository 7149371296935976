"""Stages between cuts as arrays, and the sums that their totals need.

Symbols   D_c     the layers ahead of cut c, a downset
          [i, j]  the stage between cuts i and j: the layers in D_j - D_i

A sum over [i, j] is the sum over D_j less the sum over D_i. So each array is computed once for each cut, and read at
the cuts where stages start and end. Stages lie side by side in one of two shapes:

    in a row   a partition's k stages with its k + 1 cuts:  i = 0 … k - 1,  j = i + 1
    in pairs   all stages between two of N cuts:            i has shape (N, 1),  j has shape (1, N)

The row is the diagonal above the pairs' main diagonal. So both come from the same formulas.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.cost.stage_totals import Array, Traffic
from autopart.cost.transients import counts_gradients
from autopart.records.layer_graph import LayerGraph, positions
from autopart.records.layouts import Partition


class Places(NamedTuple):
    """Layers on their stages: position, cut before the stage, cut behind it. The arrays broadcast."""

    layer: npt.NDArray[np.int64] | int
    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]

    def at_start(self, per_cut: Array) -> Array:
        """Entries from an array with shape (cuts, layers), at the cut before the stage."""
        return per_cut[self.start, self.layer]

    def at_end(self, per_cut: Array) -> Array:
        """Entries at the cut behind the stage."""
        return per_cut[self.end, self.layer]

    def inside(self, per_cut: Array) -> Array:
        """The part that the stage adds."""
        return self.at_end(per_cut) - self.at_start(per_cut)


class StagesBetweenCuts:
    """Stages between cuts, in a row or in pairs."""

    def __init__(self, ahead: npt.NDArray[np.bool_], *, paired: bool, prefixes: bool) -> None:
        """`ahead` says which layers lie ahead of each cut, shape (cuts, layers).

        `prefixes` says whether these are the first 0, 1, … n layers in the graph's order. Then the stages with a
        given layer form a block in the matrix.
        """
        self.ahead, self.paired, self.prefixes = ahead, paired, prefixes
        cuts = np.arange(len(ahead))
        self.start = cuts[:, None] if paired else cuts[:-1]
        self.end = cuts[None, :] if paired else cuts[1:]
        self.shape = (len(ahead), len(ahead)) if paired else (len(ahead) - 1,)

    @functools.cached_property
    def ahead_as_numbers(self) -> npt.NDArray[np.int64]:
        """`ahead` as 0 and 1."""
        return self.ahead.astype(np.int64)

    @functools.cached_property
    def home(self) -> npt.NDArray[np.int64]:
        """Each layer's stage, for stages in a row."""
        return len(self.ahead) - self.ahead_as_numbers.sum(axis=0) - 1

    def between(self, per_cut: Array) -> Array:
        """Each stage's part in a sum; `per_cut` has the sums over all layers ahead of each cut."""
        return per_cut[self.end] - per_cut[self.start]

    def seconds(self, per_layer: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The sum over each stage's layers."""
        if self.paired:
            return self.between(self.ahead @ per_layer)
        # A plan prints its seconds, and a difference of two sums rounds. So stages in a row are summed layer by
        # layer, in the order of execution: `accumulate` adds in that order on each machine, `sum` does not.
        inside = self.ahead[1:] > self.ahead[:-1]
        return np.add.accumulate(inside * per_layer, axis=1)[:, -1]

    def bytes(self, per_layer: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The same for whole numbers, which are exact in any order."""
        return self.between(self.ahead_as_numbers @ per_layer)

    def holds_any(self, layers: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Whether each stage has at least one among some layers."""
        return self.between(self.ahead_as_numbers[:, layers].sum(axis=1)) > 0

    def products(self, before: Array, behind: Array) -> npt.NDArray[np.int64]:
        """For each stage the sum over columns: `before` at its first cut times `behind` at its last cut."""
        if self.paired:
            # Floats take the fast matrix product; whole numbers below 2 ** 53 stay exact in it.
            return np.rint(before.astype(float) @ behind.T.astype(float)).astype(np.int64)
        return (before[:-1] * behind[1:]).sum(axis=1)

    def block(self, layer: int) -> tuple[slice, slice, npt.NDArray[np.bool_] | bool]:
        """Rows and columns for the pairs that may have a layer, and whether each has it."""
        if self.prefixes:
            # Stages with the layer start at a prefix without it and end at one with it.
            return slice(layer + 1), slice(layer + 1, None), True
        holds = self.ahead[None, :, layer] > self.ahead[:, None, layer]
        return slice(None), slice(None), holds

    def places(self, layer: int) -> Places:
        """One layer on all pairs in `block`."""
        rows, columns, _ = self.block(layer)
        return Places(layer, self.start[rows], self.end[:, columns])

    def all_places(self) -> Places:
        """Each layer on its stage, for stages in a row."""
        return Places(np.arange(len(self.home)), self.home, self.home + 1)

    def largest(self, per_layer: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The largest number among each stage's layers, at least 0."""
        if not self.paired:
            return ((self.ahead[1:] > self.ahead[:-1]) * per_layer).max(axis=1)
        largest = np.zeros(self.shape, dtype=np.int64)
        for size in np.unique(per_layer):
            # Larger numbers come later, and replace this one where a stage has such a layer.
            largest[self.holds_any(np.flatnonzero(per_layer >= size).tolist())] = size
        return largest


def in_a_row(graph: LayerGraph, partition: Partition) -> StagesBetweenCuts:
    """The stages in a partition whose edges all go forward."""
    home = np.empty(len(graph.layers), dtype=np.int64)
    for stage, layers in enumerate(partition):
        home[list(layers)] = stage
    ahead = home[None, :] < np.arange(len(partition) + 1)[:, None]
    return StagesBetweenCuts(ahead, paired=False, prefixes=False)


class _Values(NamedTuple):
    """The values that some layer reads, as arrays."""

    producer: npt.NDArray[np.int64]
    readers: npt.NDArray[np.int64]
    """Reading layers for all values, one value after the other."""
    first_reader: npt.NDArray[np.int64]
    """For each value the place in `readers` where its own begin."""
    num_readers: npt.NDArray[np.int64]
    traffic: npt.NDArray[np.int64]
    """For each value its bytes, tensors, gradient bytes and gradients, shape (values, 4)."""
    bytes: npt.NDArray[np.int64]
    keepers: npt.NDArray[np.int64]
    """Layers whose backward needs a value, one value after the other; its producer where no backward needs it."""
    first_keeper: npt.NDArray[np.int64]
    """For each value the place in `keepers` where its own begin."""
    is_kept: npt.NDArray[np.bool_]
    """Whether some backward needs the value."""
    relayed: npt.NDArray[np.int64]
    """Values with a gradient that may be relayed, each as often as it has readers."""
    relayed_read: npt.NDArray[np.int64]
    """The number of its readers ahead of both cuts: 0, 1, … up to all except one."""
    relayed_bytes: npt.NDArray[np.int64]


class CutSums:
    """The sums for `plain_totals` as arrays, for stages between cuts (`StageSums`)."""

    def __init__(self, graph: LayerGraph, stages: StagesBetweenCuts) -> None:
        self.graph, self.stages, self.place = graph, stages, positions(graph)
        self.seconds, self.bytes = stages.seconds, stages.bytes
        self._values = values = _values(graph)
        ahead = stages.ahead_as_numbers
        self._made = stages.ahead[:, values.producer]
        self._read = np.add.reduceat(ahead[:, values.readers], values.first_reader, axis=1)
        """For each cut and value the number of readers ahead."""
        self._crosses = self._made & (self._read < values.num_readers)
        needed = np.add.reduceat(ahead[:, values.keepers], values.first_keeper, axis=1)
        self._kept = (needed > 0) & values.is_kept
        """For each cut and value, whether a layer ahead needs the value in its backward."""
        self._traffic = self._crosses @ values.traffic

    def holds_tied(self, number: int) -> Array:
        return self._holds(self.graph.tied[number].layers)

    def reads_input(self, number: int) -> Array:
        return self._holds(self.graph.inputs[number].consumers)

    def _holds(self, names: Sequence[str]) -> Array:
        return self.stages.holds_any([self.place[name] for name in set(names)]).astype(np.int64)

    def received(self) -> Traffic[Array]:
        return Traffic(*self._traffic.T[:, self.stages.start])

    def sent(self) -> Traffic[Array]:
        return Traffic(*self._traffic.T[:, self.stages.end])

    def kept_values(self) -> Array:
        # A layer that needs a value lies behind its maker. So where the maker is not ahead of cut i and such a layer is
        # ahead of cut j, both are on [i, j].
        return self.stages.products(~self._made * self._values.bytes, self._kept)

    def outputs(self) -> Array:
        # A value that crosses cut j and is not made ahead of cut i is made on [i, j].
        return self.stages.products(~self._made * self._values.bytes, self._crosses & ~self._kept)

    def relayed_gradients(self) -> Array:
        # Such a value crosses both cuts, and no reader lies between them.
        values, number = self._values, self._values.relayed
        through = self._crosses[:, number] & (self._read[:, number] == values.relayed_read)
        return self.stages.products(through * values.relayed_bytes, through)

    def nothing(self) -> Array:
        return np.zeros(self.stages.shape, dtype=np.int64)


@functools.lru_cache(maxsize=8)
def _values(graph: LayerGraph) -> _Values:
    place = positions(graph)
    values = [v for v in graph.values if v.consumers]
    readers = [sorted({place[name] for name in v.consumers}) for v in values]
    keepers = [[place[name] for name in v.kept_by or (v.producer,)] for v in values]
    counts = [len(own) for own in readers]
    sizes = [v.bytes for v in values]
    back = [int(v.has_gradient) for v in values]
    grads = [size * flows for size, flows in zip(sizes, back, strict=True)]
    relayed = [
        (number, read)
        for number, (value, count) in enumerate(zip(values, counts, strict=True))
        for read in range(count)
        if value.has_gradient and counts_gradients(graph)
    ]
    numbers = [number for number, _ in relayed]
    return _Values(
        producer=_whole([place[v.producer] for v in values]),
        readers=_whole([reader for own in readers for reader in own]),
        first_reader=_whole([0, *itertools.accumulate(counts)][:-1]),
        num_readers=_whole(counts),
        traffic=_whole([*zip(sizes, [1] * len(values), grads, back, strict=True)]).reshape(-1, 4),
        bytes=_whole(sizes),
        keepers=_whole([keeper for own in keepers for keeper in own]),
        first_keeper=_whole([0, *itertools.accumulate(len(own) for own in keepers)][:-1]),
        is_kept=np.array([bool(v.kept_by) for v in values], dtype=bool),
        relayed=_whole(numbers),
        relayed_read=_whole([read for _, read in relayed]),
        relayed_bytes=_whole([sizes[number] for number in numbers]),
    )


def _whole(numbers: Sequence[int] | Sequence[tuple[int, ...]]) -> npt.NDArray[np.int64]:
    return np.array(numbers, dtype=np.int64)
