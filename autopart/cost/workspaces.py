"""Stage workspace: the largest transient among its layers, above the whole stash.

Symbols   l, h      layers on a stage, in the order of execution
          own_l     transient bytes while l runs, with gradients that are there at that moment;
                    in a whole backward also with the sum that l makes of gradients for a tied parameter
          less_h    stash bytes in h that are not there while an earlier layer runs (autopart/cost/transients.py)
          wait_h    gradient bytes for tied parameters that h's backward leaves waiting for an earlier layer

    workspace = max over l of  own_l - sum over h behind l of (less_h - wait_h)                          (1)

It is at least the same sum over all layers, with own = 0: after I, the bytes for W are left.

A stage's first backward also makes the parameter gradients, which stay:

          make_l    gradient bytes of l, and of each tied parameter whose first layer on the stage is l

    first = max over l of  own_l + make_l - sum over h behind l of (less_h - wait_h - make_h)            (2)

and at least the same sum over all layers. Nothing is missing: own_l was measured where l's gradients existed already, so it has
room for each new gradient until that is added. In the first backward the new one stays instead, and all that l
has made by then is at most make_l. The layers behind l have made theirs. A tied parameter's gradient is made once its
first layer on the stage has run its backward: before, its parts are among own and wait.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.cost.stage_totals import layer_sizes
from autopart.cost.stages import Places, StagesBetweenCuts
from autopart.cost.tied_gradients import TiedGradients, behind_each
from autopart.cost.transients import (
    Transient,
    WaitingGradient,
    input_grad_transients,
    tied_sums,
    waiting_gradients,
    weight_grad_transients,
    whole_transients,
)
from autopart.records.layer_graph import LayerGraph

Whole = npt.NDArray[np.int64]


class Workspaces(NamedTuple):
    """Transient bytes for each stage."""

    whole: Whole
    """In F and in a whole backward."""
    input_grad: Whole
    """In I."""
    weight_grad: Whole
    """In W."""
    first_backward: Whole
    """In a stage's first whole backward, with the gradients that it has made so far."""


def workspaces(graph: LayerGraph, stages: StagesBetweenCuts) -> Workspaces:
    """The workspaces for stages in a row or in pairs."""
    whole = _tables(graph)[0]
    sizes = layer_sizes(graph)
    gradients = sizes.grad_bytes + sizes.unscattered_grad_bytes
    first = whole._replace(
        most=whole.most + gradients,
        less=whole.less - gradients,
        backward=whole.backward + gradients,
        makes_tied=bool(graph.tied),
    )
    return Workspaces(*_largest(graph, stages, (*_tables(graph), first)))


def workspace_without(graph: LayerGraph, stages: StagesBetweenCuts, layers: Sequence[int]) -> Whole:
    """Workspaces in F and in a whole backward, as if some layers had no transient."""
    whole = _tables(graph)[0]
    own = np.ones(len(whole.most), dtype=np.int64)
    own[list(layers)] = 0
    without = whole._replace(most=whole.most * own, counted=whole.counted * own)
    return _largest(graph, stages, (without,))[0]


class _TransientTable(NamedTuple):
    """All layers' transients in one kind of action, arrays with shape (layers,)."""

    most: Whole
    less: Whole
    backward: Whole
    """Transient bytes in the backward alone, without gradients from other layers."""
    counted: Whole
    """1 where `backward` is known, else 0: then `most` includes all gradients."""
    leaves_tied: bool
    """Whether gradients for tied parameters wait for earlier layers and are summed; I and W leave none."""
    makes_tied: bool = False
    """Whether gradients for tied parameters are made and stay."""


class _Gradients(NamedTuple):
    """Gradients that may be there while a layer's backward runs: an entry for each `WaitingGradient`."""

    layer: Whole
    first: list[int]
    """For each layer the place where its entries begin; then the place where the last ones end."""
    bytes: Whole
    readers: Whole
    """Layers with at least one on the stage, one entry after the other."""
    first_reader: Whole
    others: Whole
    """Further layers with at least one on the stage."""
    first_other: Whole
    producer: Whole
    has_producer: Whole
    """1 where `producer` must not be on the stage, else 0."""


@functools.lru_cache(maxsize=8)
def _tables(graph: LayerGraph) -> tuple[_TransientTable, _TransientTable, _TransientTable]:
    return (
        _table(whole_transients(graph), leaves_tied=bool(graph.tied)),
        _table(input_grad_transients(graph), leaves_tied=False),
        _table(weight_grad_transients(graph), leaves_tied=False),
    )


def _table(layers: Sequence[Transient], *, leaves_tied: bool) -> _TransientTable:
    return _TransientTable(
        most=_whole([la.most_bytes for la in layers]),
        less=_whole([la.less_bytes for la in layers]),
        backward=_whole([la.backward_bytes or 0 for la in layers]),
        counted=_whole([int(la.backward_bytes is not None) for la in layers]),
        leaves_tied=leaves_tied,
    )


@functools.lru_cache(maxsize=8)
def _gradients(graph: LayerGraph) -> _Gradients:
    return _as_arrays(waiting_gradients(graph))


@functools.lru_cache(maxsize=8)
def _tied_sums(graph: LayerGraph) -> _Gradients | None:
    """None where no backward makes a sum."""
    sums = tied_sums(graph)
    return _as_arrays(sums) if any(sums) else None


def _as_arrays(waiting: Sequence[Sequence[WaitingGradient]]) -> _Gradients:
    entries: list[tuple[int, WaitingGradient]] = [
        (at, own) for at, all_ in enumerate(waiting) for own in all_
    ]
    # A condition that is always true asks for the layer itself, which is on the stage.
    readers = [own.readers or (at,) for at, own in entries]
    others = [own.others or (at,) for at, own in entries]
    return _Gradients(
        layer=_whole([at for at, _ in entries]),
        first=[0, *itertools.accumulate(len(own) for own in waiting)],
        bytes=_whole([own.bytes for _, own in entries]),
        readers=_whole([reader for own in readers for reader in own]),
        first_reader=_begins(readers),
        others=_whole([other for own in others for other in own]),
        first_other=_begins(others),
        producer=_whole([own.producer or 0 for _, own in entries]),
        has_producer=_whole([int(own.producer is not None) for _, own in entries]),
    )


def _begins(rows: Sequence[Sequence[int]]) -> Whole:
    return _whole([0, *itertools.accumulate(len(row) for row in rows)][:-1])


def _whole(numbers: Sequence[int]) -> Whole:
    return np.array(numbers, dtype=np.int64)


def _largest(
    graph: LayerGraph, stages: StagesBetweenCuts, tables: Sequence[_TransientTable]
) -> list[Whole]:
    """(1) or (2) for each table."""
    others = [table for table in tables if not _is_simple(table)]
    found = iter(_Peaks(graph, stages, others).largest() if others else ())
    return [stages.largest(t.most) if _is_simple(t) else next(found) for t in tables]


def _is_simple(table: _TransientTable) -> bool:
    """Whether a stage's largest transient is the largest of its layers' own."""
    return not (table.leaves_tied or table.counted.any() or table.less.any())


class _Peaks:
    """The terms in (1) and (2), as sums over the layers ahead of each cut."""

    def __init__(
        self, graph: LayerGraph, stages: StagesBetweenCuts, tables: Sequence[_TransientTable]
    ) -> None:
        self.stages, self.tables = stages, tables
        self.tied = [TiedGradients(graph, stages, number) for number in range(len(graph.tied))]
        self.behind = [behind_each(stages.ahead_as_numbers * table.less) for table in tables]
        counted = any(table.counted.any() for table in tables)
        self.gradients = _CutGradients(_gradients(graph), stages) if counted else None
        sums = _tied_sums(graph) if counted else None
        self.sums = _CutGradients(sums, stages) if sums else None

    def largest(self) -> list[Whole]:
        found = [self._at_the_end(number) for number in range(len(self.tables))]
        if self.stages.paired:
            # One layer at a time, on all stages that have it. Layers x pairs of cuts would be too large a matrix.
            for at in range(self.stages.ahead.shape[1]):
                rows, columns, inside = self.stages.block(at)
                places = self.stages.places(at)
                gradients = self.gradients.of_layer(at, places) if self.gradients else 0
                sums = self.sums.of_layer(at, places) if self.sums else 0
                for number, most in enumerate(found):
                    block = most[rows, columns]
                    peak = self._while_running(number, places, gradients, sums)
                    np.maximum(block, peak, out=block, where=inside)
        else:
            places = self.stages.all_places()
            gradients = self.gradients.of_all_layers(self.stages) if self.gradients else 0
            sums = self.sums.of_all_layers(self.stages) if self.sums else 0
            for number, most in enumerate(found):
                peak = self._while_running(number, places, gradients, sums)
                np.maximum.at(most, self.stages.home, peak)
        return found

    def _at_the_end(self, number: int) -> Whole:
        """Bytes above the stash where all layers on the stage have run."""
        bytes_left = 0 - self.stages.between(self.behind[number][:, 0])
        if self.tables[number].leaves_tied:
            bytes_left = bytes_left + sum(tied.at_the_end(self.stages) for tied in self.tied)
        if self.tables[number].makes_tied:
            bytes_left = bytes_left + sum(tied.made_at_the_end(self.stages) for tied in self.tied)
        return bytes_left

    def _while_running(
        self, number: int, places: Places, gradients: Whole | int, sums: Whole | int
    ) -> Whole:
        """Bytes above the stash while the layers in `places` run, with `sums` of tied gradients."""
        table, at = self.tables[number], places.layer
        own = table.most[at]
        if np.any(table.counted[at]):
            beside = gradients + sums if table.leaves_tied else gradients
            own = np.maximum(own, (table.backward[at] + beside) * table.counted[at])
        bytes_above = own - places.inside(self.behind[number][:, 1:])
        if table.leaves_tied:
            bytes_above = bytes_above + sum(tied.while_running(places) for tied in self.tied)
        if table.makes_tied:
            bytes_above = bytes_above + sum(tied.made_while_running(places) for tied in self.tied)
        return bytes_above


class _CutGradients:
    """Gradients that are there while backwards run, counted from the layers ahead of each cut."""

    def __init__(self, gradients: _Gradients, stages: StagesBetweenCuts) -> None:
        ahead, self.of = stages.ahead_as_numbers, gradients
        self.readers = np.add.reduceat(ahead[:, self.of.readers], self.of.first_reader, axis=1)
        self.others = np.add.reduceat(ahead[:, self.of.others], self.of.first_other, axis=1)
        self.producer = ahead[:, self.of.producer] * self.of.has_producer

    def of_layer(self, at: int, places: Places) -> Whole | int:
        """Bytes while layer `at` runs, for all stages with it."""
        entries = range(self.of.first[at], self.of.first[at + 1])
        return sum(self._there(places._replace(layer=entry)) for entry in entries)

    def of_all_layers(self, stages: StagesBetweenCuts) -> Whole:
        """Bytes while each layer runs, for stages in a row."""
        home = stages.home[self.of.layer]
        there = self._there(Places(np.arange(len(home)), home, home + 1))
        found = np.zeros(len(stages.home), dtype=np.int64)
        np.add.at(found, self.of.layer, there)
        return found

    def _there(self, places: Places) -> Whole:
        """Bytes for entries in `_Gradients`; 0 where the gradient is not there. `places` has entries for layers."""
        read = (places.inside(self.readers) > 0) & (places.inside(self.others) > 0)
        there = read & (places.inside(self.producer) == 0)
        return self.of.bytes[places.layer] * there
