"""Enumerations of downsets, against a definition that tries all node sets."""

import random

import numpy as np
import pytest

from autopart.downsets import (
    bits,
    covers_by_target,
    downset_lattice,
    downsets_of,
    enumerate_downsets,
    estimated_downsets,
    masks_of_edges,
    merge_bits,
    pack,
    sum_bits,
    unpack,
)

Edges = list[tuple[int, int]]


def random_edges(seed: int) -> tuple[int, Edges]:
    rng = random.Random(seed)
    n, share = rng.randint(1, 8), rng.choice([0.1, 0.3, 0.7])
    return n, [(u, w) for u in range(n) for w in range(u + 1, n) if rng.random() < share]


def by_definition(n: int, edges: Edges) -> list[int]:
    """All node sets that have the sources of their edges, sorted by size and then by mask."""
    closed = [m for m in range(1 << n) if all(m >> u & 1 for u, w in edges if m >> w & 1)]
    return sorted(closed, key=lambda mask: (mask.bit_count(), mask))


@pytest.mark.parametrize("seed", range(60))
def test_a_lattice_has_every_downset_once_with_every_cover(seed: int):
    n, edges = random_edges(seed)
    expected = by_definition(n, edges)
    lattice = downset_lattice(*masks_of_edges(n, edges), len(expected))
    assert lattice is not None
    masks = list(lattice.masks)
    assert sorted(masks, key=lambda mask: (mask.bit_count(), mask)) == expected
    assert [mask.bit_count() for mask in masks] == [mask.bit_count() for mask in expected]
    for mask, (parent, node) in zip(masks[1:], lattice.grown, strict=True):
        assert mask == masks[parent] | 1 << node and not masks[parent] >> node & 1
    smaller, larger = (side.tolist() for side in lattice.covers)
    covers = {
        (a, b) for a in expected for b in expected if a & ~b == 0 and (a ^ b).bit_count() == 1
    }
    assert sorted(smaller) == smaller
    assert {(masks[a], masks[b]) for a, b in zip(smaller, larger, strict=True)} == covers
    assert len(smaller) == len(covers)
    assert downset_lattice(*masks_of_edges(n, edges), len(expected) - 1) is None


@pytest.mark.parametrize("seed", range(60))
def test_steps_name_the_added_node_and_are_sorted_by_target(seed: int):
    n, edges = random_edges(seed)
    lattice = downset_lattice(*masks_of_edges(n, edges), 1 << n)
    assert lattice is not None
    steps = covers_by_target(lattice)
    assert (np.diff(steps.target) >= 0).all() and len(steps.target) == len(lattice.covers[0])
    for source, target, node in zip(*(column.tolist() for column in steps), strict=True):
        assert lattice.masks[target] == lattice.masks[source] | 1 << node


@pytest.mark.parametrize("seed", range(60))
def test_all_enumerations_give_the_same_downsets(seed: int):
    n, edges = random_edges(seed)
    expected = by_definition(n, edges)
    assert downsets_of(n, edges, len(expected)) == expected
    assert downsets_of(n, edges, len(expected) - 1) is None
    before = [[u for u, w in edges if w == v] for v in range(n)]
    for most_rows in (1, 4, 1000):
        rows = np.concatenate(list(enumerate_downsets(before, most_rows)))
        assert sorted(int(row[0]) for row in rows) == sorted(expected)
    assert estimated_downsets(before, 1000) == len(expected)


@pytest.mark.parametrize("seed", range(20))
def test_sums_and_unions_over_bits_equal_those_over_nodes(seed: int):
    rng = random.Random(seed)
    width = rng.randint(1, 40)
    masks = [rng.randrange(1 << width) for _ in range(10)]
    amounts = np.array([float(rng.randrange(100)) for _ in range(width)])
    others = [rng.randrange(1 << 20) for _ in range(width)]
    rows = pack(masks, width)
    assert (unpack(masks, width) == [[m >> v & 1 for v in range(width)] for m in masks]).all()
    assert sum_bits(rows, amounts).tolist() == [sum(amounts[v] for v in bits(m)) for m in masks]
    merged = [0] * len(masks)
    for at, mask in enumerate(masks):
        for v in bits(mask):
            merged[at] |= others[v]
    assert merge_bits(rows, others, 20).tolist() == pack(merged, 20).tolist()
