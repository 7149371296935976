"""Rank groups: their size, their places and their names."""

import itertools
import json

import msgspec
import pytest

from autopart.records.rank_group import (
    Group,
    group_name,
    group_size,
    has_ring,
    is_tensor_only,
    places_among,
    tensor_group,
)

GRID = Group(tensor=2, context=3, data=4, shard="zero3", reduce="microbatch")


def test_the_places_of_a_group_have_the_tensor_degree_fastest():
    places = {
        (i, j, k): number
        for number, (i, j, k) in enumerate(itertools.product(range(4), range(3), range(2)))
    }
    assert len(places) == group_size(GRID) == 24
    assert list(places_among(GRID, "tensor")) == [places[0, 0, k] for k in range(2)]
    assert list(places_among(GRID, "context")) == [places[0, j, 0] for j in range(3)]
    assert list(places_among(GRID, "data")) == [places[i, 0, 0] for i in range(4)]
    experts = Group(tensor=2, expert=3, data=4, shard="zero2", reduce="microbatch")
    assert list(places_among(experts, "expert")) == [places[0, j, 0] for j in range(3)]
    assert list(places_among(experts, "data")) == [places[i, 0, 0] for i in range(4)]


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (msgspec.UNSET, "tensor degree 1"),
        (Group(tensor=2, sequence_parallel=True), "tensor degree 2 with sequence parallelism"),
        (Group(context=2), "context degree 2"),
        (Group(context=2, exchange="ring"), "context degree 2 with ring exchange"),
        (Group(tensor=2, expert=4), "tensor degree 2, expert degree 4"),
        (GRID, "tensor degree 2, context degree 3, zero3 over 4 GPUs"),
        (Group(data=2, shard="zero2", reduce="step"), "zero2 over 2 GPUs with one sum per step"),
    ],
)
def test_a_group_has_a_name_for_each_degree_above_1(group: Group, name: str):
    assert group_name(group) == name


def test_only_tensor_groups_are_tensor_only():
    assert is_tensor_only(msgspec.UNSET) and is_tensor_only(Group(tensor=4))
    assert not is_tensor_only(Group(tensor=4, context=2)) and not is_tensor_only(GRID)


def test_context_ranks_stand_inside_expert_ranks():
    """Places (expert, context, tensor): the last runs fastest."""
    group = Group(tensor=2, context=3, expert=4)
    assert group_size(group) == 24
    assert group_name(group) == "tensor degree 2, context degree 3, expert degree 4"
    assert list(places_among(group, "context")) == [0, 2, 4]
    assert list(places_among(group, "expert")) == [0, 6, 12, 18]


def test_a_ring_needs_a_context_degree():
    with pytest.raises(ValueError, match="exchange needs a context degree above 1"):
        Group(tensor=2, exchange="ring")
    assert not has_ring(msgspec.UNSET) and not has_ring(Group(context=2))
    assert has_ring(Group(context=2, exchange="ring"))


def test_a_tensor_degree_of_1_is_no_group():
    assert tensor_group(1, sequence_parallel=True) is msgspec.UNSET
    assert tensor_group(4, sequence_parallel=False) == Group(tensor=4)


def test_a_group_is_written_without_its_defaults():
    assert json.loads(msgspec.json.encode(Group(context=2))) == {"context": 2}
