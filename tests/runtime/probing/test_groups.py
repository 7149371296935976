"""Which groups and pairs a probe of the network measures."""

import pytest
import torch

from autopart.runtime.probing.groups import GroupTask, SendTask, tasks
from autopart.runtime.probing.ranks import Ranks


def on(nodes: int, per_node: int) -> Ranks:
    return Ranks(0, nodes * per_node, per_node, torch.device("cpu"), "gloo")


def by_name(nodes: int, per_node: int) -> dict[str, GroupTask | SendTask]:
    return {str(task): task for task in tasks(on(nodes, per_node))}


def test_two_nodes_of_four_have_the_groups_that_plans_use() -> None:
    found = by_name(2, 4)
    groups = {name: task.groups for name, task in found.items() if isinstance(task, GroupTask)}
    assert groups["all-gather, 4 x 2 ranks on 2 nodes"] == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert groups["all-gather, 2 ranks on 2 nodes"] == ((0, 4),)
    assert groups["all-reduce, 8 ranks on 2 nodes"] == (tuple(range(8)),)
    assert groups["all-reduce, 4 ranks on 1 node"] == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert groups["all-reduce, 2 x 2 ranks on 1 node"] == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert groups["all-gather, 2 x 4 ranks on 2 nodes"] == ((0, 1, 4, 5), (2, 3, 6, 7))
    assert len(groups) == 15
    # The groups that show the rails come first: time may run out.
    assert list(found)[:2] == [
        "all-gather, 4 x 2 ranks on 2 nodes",
        "all-gather, 2 ranks on 2 nodes",
    ]


def test_sends_go_to_neighbours_over_a_rail_and_to_another_rail() -> None:
    pairs = {
        (task.path, task.at_once): task.pairs
        for task in tasks(on(4, 4))
        if isinstance(task, SendTask)
    }
    assert pairs["same node", 2] == ((0, 1), (4, 5), (8, 9), (12, 13))
    assert pairs["same node", 4][:2] == ((0, 1), (2, 3))
    assert pairs["same rail", 1] == ((0, 4), (8, 12))
    assert pairs["same rail", 4][:4] == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert pairs["other rail", 1] == ((0, 5), (8, 13))
    assert pairs["other rail", 4][:4] == ((0, 5), (1, 6), (2, 7), (3, 4))


def test_nodes_with_one_rank_have_no_groups_inside() -> None:
    assert set(by_name(2, 1)) == {
        "all-gather, 2 ranks on 2 nodes",
        "all-reduce, 2 ranks on 2 nodes",
        "send, same rail, 1 at once",
        "all-to-all, 2 ranks on 2 nodes",
    }


@pytest.mark.parametrize(("nodes", "per_node"), [(2, 1), (2, 2), (3, 2), (4, 8), (5, 3)])
def test_no_rank_is_in_two_groups_or_pairs_at_once(nodes: int, per_node: int) -> None:
    for task in tasks(on(nodes, per_node)):
        parts = task.groups if isinstance(task, GroupTask) else task.pairs
        used = [rank for part in parts for rank in part]
        assert len(used) == len(set(used)) and set(used) <= set(range(nodes * per_node)), task
        if isinstance(task, GroupTask):
            assert all(len({rank // per_node for rank in part}) == task.nodes for part in parts), (
                task
            )
