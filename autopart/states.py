"""Down-sets of a graph as rows of booleans, and the pairs of them that a stage may lie between.

A state is a set of nodes that holds the sources of all edges into it: what the stages up to some
place may hold. Where a graph has few, searching over them searches over every order of its nodes.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ROUNDING = 1e-9
"""Slack with which a stage may be left out as hopeless: of a device, and relative of a time."""


MOST_PAIRS = 10_000_000
"""More would take gigabytes."""


class Pairs(NamedTuple):
    """Stages between two states, low inside high."""

    low: Array
    high: Array
    spare: Array
    """The devices that the rest of the graph leaves them at most."""
    after: Array
    """The devices that what comes after them needs at least."""


class Growth(NamedTuple):
    """Every down-set, smaller ones first, and every way to add one node to one of them; the ways are
    sorted by the down-set that they lead to."""

    sets: tuple[int, ...]
    """Node v as bit v."""
    sizes: Array
    source: Array
    target: Array
    node: Array


def grow(num_nodes: int, edges: Iterable[tuple[int, int]], most: int) -> Growth | None:
    """Every down-set of a graph; None where there are more than `most`."""
    needs, readers = [0] * num_nodes, [list[int]() for _ in range(num_nodes)]
    for source, target in edges:
        needs[target] |= 1 << source
        readers[source].append(target)
    found, sizes = [0], [0]
    ways: list[tuple[int, int, int]] = []
    addable = {0: [v for v in range(num_nodes) if not needs[v]]}
    for size in range(1, num_nodes + 1):
        made: dict[int, list[tuple[int, int]]] = {}
        grown: dict[int, list[int]] = {}
        for at, (whole, ready) in enumerate(addable.items(), len(found) - len(addable)):
            for v in ready:
                more = whole | 1 << v
                if more not in made:
                    made[more] = []
                    freed = [x for x in readers[v] if not needs[x] & ~more]
                    grown[more] = [x for x in ready if x != v] + freed
                made[more].append((at, v))
        if len(found) + len(made) > most:
            return None
        for target, origins in enumerate(made.values(), len(found)):
            ways += [(at, target, v) for at, v in origins]
        found += made
        sizes += [size] * len(made)
        addable = grown
    columns = np.array(ways, dtype=np.int64).reshape(-1, 3).T
    return Growth(tuple(found), np.array(sizes), *columns)


def down_sets(num_nodes: int, edges: Iterable[tuple[int, int]], most: int) -> Array | None:
    """[set, node] every down-set, smaller ones first; None where there are more than `most`."""
    growth = grow(num_nodes, edges, most)
    return None if growth is None else _flags(growth.sets, num_nodes)


def prefixes(order: Sequence[int]) -> Array:
    """[set, node] the beginnings of an order, from the empty one."""
    sets = np.zeros((len(order) + 1, len(order)), dtype=bool)
    for size, node in enumerate(order, 1):
        sets[size:, node] = True
    return sets


class TooManyPairs(Exception):
    """More pairs of states than `MOST_PAIRS`; whoever asked for them takes another way."""


def nested_pairs(
    states: Array, work: Array, devices: int, counts: Array, most_time: float
) -> Pairs:
    """The pairs of nested states between which a stage within `most_time` leaves the rest enough of
    the devices: its `work` [node] alone, in device-seconds, needs work / time of them, rounded up
    on either side of the stage, and for the stage itself to one of the ascending `counts`.
    Raises TooManyPairs."""
    done = states @ work
    words = _words(states)
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = np.nan_to_num(done / most_time)
    before = np.ceil(needed - ROUNDING)
    after = np.ceil(needed[-1] - needed - ROUNDING)
    fitting = np.append(counts, devices + 1)[np.searchsorted(counts, np.arange(devices + 2))]
    rows: list[tuple[Array, ...]] = []
    total = 0
    for low in range(len(states) - 1):
        spare = devices - before[low] - after[low + 1 :]
        own = np.ceil((needed[low + 1 :] - needed[low]) * (1 - ROUNDING) - ROUNDING)
        high = low + 1 + np.flatnonzero(own <= spare)
        high = high[fitting[own[high - low - 1].astype(np.int64)] <= spare[high - low - 1]]
        high = high[((words[low] & ~words[high]) == 0).all(axis=1)]
        spare = spare[high - low - 1].astype(np.int64)
        rows.append((np.full(len(high), low), high, spare, after[high].astype(np.int64)))
        total += len(high)
        if total > MOST_PAIRS:
            raise TooManyPairs
    return Pairs(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def _words(states: Array) -> Array:
    """Each state as 64-bit words."""
    packed = np.packbits(states, axis=1)
    padded = np.zeros((len(states), -(-packed.shape[1] // 8) * 8), dtype=np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.view(np.uint64)


def _flags(sets: Sequence[int], num_nodes: int) -> Array:
    length = -(-num_nodes // 8)
    packed = np.frombuffer(b"".join(s.to_bytes(length, "little") for s in sets), dtype=np.uint8)
    bits = np.unpackbits(packed.reshape(len(sets), length), axis=1, bitorder="little")
    return bits[:, :num_nodes].astype(bool)
