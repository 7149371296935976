"""Which rank groups fill nodes, by counting their GPUs on them."""

import itertools
import math

import msgspec
import pytest

from autopart.errors import AutopartError
from autopart.records.groups_on_nodes import check_fits_nodes, fits_nodes, shard_degrees
from autopart.records.rank_group import Group, MaybeGroup
from tests.support.problems import cluster

SHAPES = [(1, 4), (1, 6), (2, 2), (2, 4), (3, 4), (4, 1), (4, 2), (6, 2)]


def nodes_of_sets(sizes: tuple[int, ...], gpus: int, total: int) -> list[list[list[int]]]:
    """For each degree and each set of GPUs that share it: how many are on each of its nodes, in order."""
    found: list[list[list[int]]] = []
    stride = 1
    for degree in sizes:
        sets: list[list[int]] = []
        for first in range(total):
            if first // stride % degree == 0:
                nodes = [(first + stride * at) // gpus for at in range(degree)]
                sets.append(sorted(nodes.count(node) for node in set(nodes)))
        stride *= degree
        found.append(sets)
    return found


@pytest.mark.parametrize(("nodes", "gpus"), SHAPES)
def test_a_group_fits_where_all_its_sets_lie_alike(nodes: int, gpus: int):
    """Tensor sets lie in a node. The sets of any other degree have one shape, with as many GPUs on each of their nodes."""
    total, on = nodes * gpus, cluster(nodes, gpus)
    for sizes in itertools.product((1, 2, 3, 4), repeat=3):
        tensor, context, data = sizes
        if math.prod(sizes) == 1 or total % math.prod(sizes):
            continue
        sets = nodes_of_sets(sizes, gpus, total)
        alike = all(one == own[0] and len(set(one)) == 1 for own in sets for one in own)
        aligned = alike and all(len(one) == 1 for one in sets[0])
        group = (
            Group(tensor=tensor, context=context, data=data, shard="zero3", reduce="step")
            if data > 1
            else Group(tensor=tensor, context=context)
        )
        if fits_nodes(group, on):
            assert aligned, sizes
            check_fits_nodes(group, on)
        else:
            # Groups may also lie alike, and yet end within a node.
            whole = [math.prod(sizes[:n]) for n in (1, 2, 3)]
            assert not aligned or any(gpus % size and size % gpus for size in whole), sizes
            with pytest.raises(AutopartError, match="does not fill a node"):
                check_fits_nodes(group, on)


@pytest.mark.parametrize(("nodes", "gpus"), SHAPES)
@pytest.mark.parametrize(
    "base", [None, Group(tensor=2), Group(context=4), Group(tensor=2, context=2)]
)
def test_shard_degrees_are_those_that_fit(nodes: int, gpus: int, base: Group | None):
    on = cluster(nodes, gpus)
    given: MaybeGroup = msgspec.UNSET if base is None else base
    if not fits_nodes(given, on):
        return
    whole = base or Group(context=2)
    tensor, context = whole.tensor, whole.context if base else 1
    able = [
        d
        for d in range(2, nodes * gpus + 1)
        if fits_nodes(
            Group(tensor=tensor, context=context, data=d, shard="zero2", reduce="step"), on
        )
    ]
    assert shard_degrees(given, on) == able


def test_a_group_that_ends_within_a_node_is_told_the_degrees_that_do():
    with pytest.raises(AutopartError) as told:
        check_fits_nodes(
            Group(context=6, expert=1, data=4, shard="zero2", reduce="step"), cluster(6, 8)
        )
    assert str(told.value) == (
        "a rank group of 24 GPUs (its first degrees make 6) does not fill a node of 8 GPUs: the product of its degrees "
        "must divide the GPUs of a node, as 1, 2, 4, 8 do, or be whole nodes, as 16, 24, 48 do"
    )
