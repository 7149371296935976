"""The list of downsets with their covers, against their definition."""

import itertools
import random

import pytest

from autopart.peers.pipedream.charged_layers import charged_layers
from autopart.peers.pipedream.downsets import list_downsets, nesting
from tests.support.peers import pipedream_graphs


@pytest.mark.parametrize("seed", range(30))
def test_the_list_has_every_downset_once_with_its_covers(seed: int):
    rng = random.Random(seed)
    graph = pipedream_graphs.random_graph(rng, 7, rng.choice([0.0, 0.3, 0.8]))
    nodes = charged_layers(graph)
    downsets = list_downsets(nodes.before, nodes.after, 10**6)
    assert downsets is not None and downsets.covers is not None
    expected = {sum(1 << v for v in ahead) for ahead in pipedream_graphs.downsets(graph)}
    assert set(downsets.masks) == expected and len(downsets.masks) == len(expected)
    pairs = {(downsets.masks[a], downsets.masks[b]) for a, b in zip(*downsets.covers, strict=True)}
    assert pairs == {
        (a, b)
        for a, b in itertools.permutations(expected, 2)
        if a & b == a and (b - a).bit_count() == 1
    }
    inside = nesting(downsets)
    assert (nesting(downsets._replace(covers=None)) == inside).all()
    for end, start in itertools.product(range(len(expected)), repeat=2):
        a, b = downsets.masks[start], downsets.masks[end]
        assert inside[end, start] == (a & b == a and a != b)
    assert list_downsets(nodes.before, nodes.after, len(expected) - 1) is None
