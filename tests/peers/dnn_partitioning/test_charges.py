import random

import numpy as np
import pytest

from autopart.errors import PlanError
from autopart.peers.dnn_partitioning.block_charges import TOO_MUCH, BlockCharges
from autopart.peers.dnn_partitioning.blocks import blocks_of
from autopart.peers.dnn_partitioning.charges import (
    DnnInstance,
    charge,
    check_split,
    objective,
    size_of,
)
from tests.support.peers.dnn_instances import instance, node, random_instance, splits, stage

FAN = instance(
    [node(1, 1.0), node(2, 2.0), node(3, 4.0), node(4, 8.0)],
    {(1, 2): 0.5, (1, 3): 0.5, (1, 4): 0.5, (2, 4): 0.25},
    accelerators=3,
    cpus=1,
)
"""Node 1 feeds 2, 3 and 4; node 2 feeds 4."""


def test_a_transfer_costs_both_ends_once_however_many_edges_there_are() -> None:
    assert charge(FAN, stage("accelerator", 1)) == 1.0 + 0.5
    assert charge(FAN, stage("accelerator", 2, 3, 4)) == 2.0 + 4.0 + 8.0 + 0.5
    assert charge(FAN, stage("accelerator", 3, 4)) == 4.0 + 8.0 + 0.5 + 0.25
    assert charge(FAN, stage("accelerator", 1, 2, 3, 4)) == 15.0
    assert charge(FAN, stage("accelerator")) == 0.0


def test_a_cpu_pays_for_no_transfer() -> None:
    assert charge(FAN, stage("cpu", 1, 2)) == 30.0
    assert objective(FAN, [stage("cpu", 1), stage("accelerator", 2, 3, 4)]) == 14.5


def test_a_device_reads_a_node_once_for_each_other_device() -> None:
    apart = [stage("accelerator", 1), stage("accelerator", 2), stage("accelerator", 3, 4)]
    assert [charge(FAN, s) for s in apart] == [1.5, 2.0 + 0.5 + 0.25, 12.0 + 0.5 + 0.25]
    assert check_split(FAN, apart, contiguous=True) == 12.75


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([stage("accelerator", 1, 2, 3)], "node 4 is on no stage"),
        ([stage("accelerator", 1, 2, 3, 4), stage("cpu", 4)], "on stage 0 and on stage 1"),
        ([stage("accelerator", 1, 2, 3, 4, 5)], "holds node 5, which the file does not know"),
        ([stage("cpu", 1), stage("cpu", 2, 3, 4)], "2 stages of kind cpu, there are 1"),
        ([stage("accelerator", 2), stage("accelerator", 1, 3, 4)], "not contiguous in this order"),
    ],
)
def test_a_split_that_breaks_a_rule_is_refused(stages: list, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        check_split(FAN, stages, contiguous=True)


def test_pieces_may_stand_anywhere_where_contiguity_is_not_asked_for() -> None:
    around = [stage("accelerator", 1, 4), stage("accelerator", 2, 3)]
    with pytest.raises(PlanError, match="not contiguous"):
        check_split(FAN, around, contiguous=True)
    assert check_split(FAN, around, contiguous=False) == 1.0 + 8.0 + 0.5 + 0.25


def test_colors_sizes_and_support_are_checked() -> None:
    tied = instance([node(1, color=7, size=2.0), node(2), node(3, color=7, size=2.5)], {})
    apart = [stage("accelerator", 1, 2), stage("accelerator", 3)]
    with pytest.raises(PlanError, match="nodes of color 7 are on stages 0 and 1"):
        check_split(tied, apart, contiguous=True)
    together = [stage("accelerator", 1, 3), stage("accelerator", 2)]
    assert size_of(tied, together[0]) == 4.5
    with pytest.raises(PlanError, match="holds 4 bytes of 4"):
        check_split(tied._replace(size_limit=4.0), together, contiguous=True)
    assert check_split(tied._replace(size_limit=4.5), together, contiguous=True) == 2.0
    unable = instance([node(1, on_accelerator=False)], {}, cpus=1)
    with pytest.raises(PlanError, match="node 1 cannot run on an accelerator"):
        check_split(unable, [stage("accelerator", 1)], contiguous=True)
    assert check_split(unable, [stage("cpu", 1)], contiguous=True) == 10.0


def test_an_orphaned_backward_node_counts_in_reverse() -> None:
    """Backward goes from node 12 to 11 to 10. Node 11 has no forward node, so its colour stands
    between the others."""
    net = instance(
        [
            node(0, color=0),
            node(2, color=2),
            node(10, color=0, backward=True),
            node(11, backward=True),
            node(12, color=2, backward=True),
        ],
        {(0, 2): 1.0, (12, 11): 1.0, (11, 10): 1.0},
        accelerators=3,
    )
    ordered = [stage("accelerator", 0, 10), stage("accelerator", 11), stage("accelerator", 2, 12)]
    assert check_split(net, ordered, contiguous=True) == 2.0 + 1.0 + 1.0
    with pytest.raises(PlanError, match="not contiguous"):
        check_split(net, [ordered[1], ordered[0], ordered[2]], contiguous=True)


def _some_split(problem: DnnInstance, rng: random.Random) -> list | None:
    found = list(splits(problem, contiguous=False))
    if not found:
        return None
    largest, home = rng.choice(found)
    kinds = ["accelerator"] * problem.num_accelerators + ["cpu"] * problem.num_cpus
    stages = [
        stage(kind, *sorted(n for n, at in home.items() if at == device))
        for device, kind in enumerate(kinds)
    ]
    return [largest, stages]


@pytest.mark.slow
def test_charges_are_the_slow_and_obvious_sums() -> None:
    rng = random.Random(5)
    tried = 0
    for _ in range(150):
        problem = random_instance(rng, most_groups=4)
        drawn = _some_split(problem, rng)
        if drawn is not None:
            largest, stages = drawn
            assert check_split(problem, stages, contiguous=False) == pytest.approx(
                largest, rel=1e-9
            )
            tried += 1
    assert tried > 70


def test_charges_for_all_intervals_of_an_order_are_the_stages_charges() -> None:
    rng = random.Random(6)
    for _ in range(40):
        problem = random_instance(rng)
        blocks = blocks_of(problem)
        charges = BlockCharges(blocks, problem.size_limit, span=1e3)
        order = list(range(len(blocks.work)))
        rng.shuffle(order)
        on_accelerator, on_cpu = charges.intervals(order, np.arange(len(order) + 1))
        for i in range(len(order) + 1):
            for j in range(i, len(order) + 1):
                nodes = sorted(n for block in order[i:j] for n in blocks.members[block])
                cpu = charge(problem, stage("cpu", *nodes))
                assert charges.time(int(on_cpu[i, j])) == pytest.approx(cpu, rel=1e-9, abs=1e-12)
                expected = charge(problem, stage("accelerator", *nodes))
                able = all(n.on_accelerator for n in problem.nodes if n.id in nodes)
                sized = size_of(problem, stage("accelerator", *nodes))
                if able and sized <= problem.size_limit:
                    got = charges.time(int(on_accelerator[i, j]))
                    assert got == pytest.approx(expected, rel=1e-9, abs=1e-12)
                else:
                    assert on_accelerator[i, j] == TOO_MUCH


def test_an_order_may_be_cut_at_some_places_only() -> None:
    rng = random.Random(7)
    for _ in range(40):
        problem = random_instance(rng)
        blocks = blocks_of(problem)
        charges = BlockCharges(blocks, problem.size_limit)
        size = len(blocks.work)
        order = rng.sample(range(size), size)
        cuts = np.array(sorted({0, size, *rng.sample(range(size + 1), size // 2)}))
        everywhere = charges.intervals(order, np.arange(size + 1))
        for few, all_of_them in zip(charges.intervals(order, cuts), everywhere, strict=True):
            ahead = np.triu(np.ones(few.shape, dtype=bool))
            assert (few == all_of_them[np.ix_(cuts, cuts)])[ahead].all()


def test_quanta_add_up_exactly() -> None:
    problem = instance([node(k, 0.1 * k) for k in range(1, 40)], {(1, 2): 0.3})
    charges = BlockCharges(blocks_of(problem), problem.size_limit)
    assert 1 << 51 <= int(charges.work.sum() + charges.costs.sum()) <= 1 << 52
    assert charges.quanta(charges.time(12345)) == 12345
    errors = np.abs(charges.work - np.array(charges.blocks.work) * charges.scale)
    assert errors.max() <= 0.5
    assert charges.is_fine_for(1.0) and not charges.is_fine_for(1e-6)
