"""Groups of ranks on nodes, against trying every node for every group."""

import itertools
import random

import pytest

from autopart.bounds.node_packing import pack_nodes
from tests.support.seeds import seeds


def finds_room(sizes: list[int], num_nodes: int, room: int) -> bool:
    return any(
        all(
            sum(size for size, own in zip(sizes, nodes, strict=True) if own == node) <= room
            for node in range(num_nodes)
        )
        for nodes in itertools.product(range(num_nodes), repeat=len(sizes))
    )


@pytest.mark.parametrize("seed", seeds(40, 400))
def test_a_packing_is_found_where_one_exists_and_keeps_every_node_within_its_room(seed: int):
    rng = random.Random(seed)
    num_nodes, room = rng.randint(1, 3), rng.randint(1, 8)
    sizes = [rng.randint(1, room + rng.choice([0, 0, 1])) for _ in range(rng.randint(1, 7))]
    packed = pack_nodes(sizes, num_nodes, room)
    assert packed.certain
    assert (packed.nodes is not None) == finds_room(sizes, num_nodes, room)
    if packed.nodes is not None:
        for node in range(num_nodes):
            assert sum(s for s, own in zip(sizes, packed.nodes, strict=True) if own == node) <= room
        first_uses = list(dict.fromkeys(packed.nodes))
        assert first_uses == list(range(len(first_uses)))


def test_groups_that_no_quick_rule_packs_are_packed():
    # Largest first fills the nodes as 4 4, 3 3, and leaves no room for the last groups.
    packed = pack_nodes([4, 4, 3, 3, 2, 2, 2], 2, 10)
    assert packed.nodes is not None


def test_many_equal_groups_are_packed_at_once():
    packed = pack_nodes([4] * 4096, 2048, 8)
    assert packed.nodes == [at // 2 for at in range(4096)]
