"""The loads of expert ranks in a block of code, by layer and expert degree."""

import threading
from collections.abc import Collection, Generator, Iterable
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor

from autopart.records.expert_load import LayerLoad


class LoadSum(NamedTuple):
    """The imbalance of one layer at one expert degree, over some microbatches."""

    layer: str
    expert: int
    number: int
    """How many microbatches there were."""
    total: float
    """The sum of their imbalances."""
    largest: float


class ExpertLoads:
    """The imbalance of every exchange of entries in a block."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, int], LoadSum] = {}
        # In a check the ranks are threads.
        self._lock = threading.Lock()

    def note(self, layer: str, counts: torch.Tensor) -> None:
        """Note one exchange: entries of each rank (row) for each expert (column)."""
        entries = counts.sum(0).tolist()
        for expert in range(2, len(entries) + 1):
            if len(entries) % expert == 0:
                own = imbalance_of(entries, expert)
                self._add(LoadSum(layer, expert, 1, own, own))

    def add(self, sums: Iterable[LoadSum]) -> None:
        """Add what other ranks noted."""
        for one in sums:
            self._add(one)

    def sums(self) -> tuple[LoadSum, ...]:
        """Return what was noted, in the order of the exchanges."""
        return tuple(self._sums.values())

    def _add(self, new: LoadSum) -> None:
        key = new.layer, new.expert
        with self._lock:
            old = self._sums.get(key, LoadSum(*key, 0, 0.0, 1.0))
            self._sums[key] = LoadSum(
                *key, old.number + new.number, old.total + new.total, max(old.largest, new.largest)
            )


_NOTING: list[ExpertLoads] = []


@contextmanager
def noted_loads() -> Generator[ExpertLoads]:
    """In this block, exchanges of entries are noted."""
    loads = ExpertLoads()
    _NOTING.append(loads)
    try:
        yield loads
    finally:
        _NOTING.remove(loads)


def note_counts(layer: str, counts: torch.Tensor) -> None:
    """Note one exchange where a block asks for it; tensors without memory have no counts."""
    if _NOTING and counts.device.type != "meta" and not isinstance(counts, FakeTensor):
        for loads in _NOTING:
            loads.note(layer, counts)


def loads_of(
    sums: Iterable[LoadSum], degrees: Collection[int] | None = None
) -> tuple[LayerLoad, ...]:
    """Return each layer's imbalance at some expert degrees, by default at all that were noted."""
    return tuple(
        # Rounding may leave a mean beyond the ends of its range.
        LayerLoad(
            layer=one.layer,
            expert=one.expert,
            imbalance=min(max(1.0, one.total / one.number), one.largest),
            largest=one.largest,
        )
        for one in sums
        if degrees is None or one.expert in degrees
    )


def imbalance_of(entries: list[int], expert: int) -> float:
    """Return the entries of the fullest of `expert` ranks divided by their mean; 1 without entries.

    `entries` has those of each expert. Rank i has the i-th of equal parts of the experts.
    """
    own = len(entries) // expert
    fullest = max(sum(entries[at : at + own]) for at in range(0, len(entries), own))
    return max(1.0, fullest * expert / sum(entries)) if any(entries) else 1.0
