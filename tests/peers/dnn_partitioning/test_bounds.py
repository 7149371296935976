import itertools
import random

import numpy as np
import pytest

from autopart.peers.dnn_partitioning.block_charges import BlockCharges
from autopart.peers.dnn_partitioning.blocks import blocks_of
from autopart.peers.dnn_partitioning.bounds import counting_bound, cut_bound, packing_bound
from autopart.peers.dnn_partitioning.charges import DnnInstance, charge
from autopart.peers.dnn_partitioning.order_dp import cut_order
from tests.support.peers.dnn_instances import (
    instance,
    node,
    random_instance,
    smallest_largest_charge,
    stage,
)


def charges_of(problem: DnnInstance) -> BlockCharges:
    return BlockCharges(blocks_of(problem, contiguous=False), problem.size_limit)


@pytest.mark.slow
def test_no_bound_is_above_the_best_of_all_splits():
    rng = random.Random(21)
    met = [0, 0, 0]
    for _ in range(250):
        problem = random_instance(rng, most_groups=4)
        expected = smallest_largest_charge(problem, contiguous=False)
        if expected is None:
            continue
        charges = charges_of(problem)
        accelerators, cpus = problem.num_accelerators, problem.num_cpus
        counted = counting_bound(charges, accelerators, cpus)
        bounds = [
            counted,
            packing_bound(charges, accelerators, cpus, counted, charges.quanta(expected)),
            cut_bound(charges, cpus, counted),
        ]
        for at, bound in enumerate(bounds):
            assert charges.time(bound) <= expected * (1 + 1e-9) + 1e-12
            met[at] += charges.time(bound) >= expected * (1 - 1e-6)
    assert min(met) > 20, "each bound is often the best there is"


def test_a_cpu_that_is_as_fast_counts_as_one_more_device():
    nodes = [node(k, 1.0, cpu_latency=1.0) for k in range(6)]
    charges = charges_of(instance(nodes, {}, 2, 1))
    assert charges.time(counting_bound(charges, 2, 1)) == pytest.approx(2.0)
    assert charges.time(counting_bound(charges, 2, 0)) == pytest.approx(3.0)


def test_five_equal_nodes_do_not_fit_evenly_on_two_devices():
    charges = charges_of(instance([node(k, 2.0) for k in range(5)], {}, 2))
    counted = counting_bound(charges, 2, 0)
    assert charges.time(counted) == pytest.approx(5.0)
    packed = packing_bound(charges, 2, 0, counted, charges.quanta(10.0))
    assert charges.time(packed) == pytest.approx(6.0, rel=1e-4)
    assert charges.time(packed) <= 6.0


def test_many_different_nodes_are_rounded_down_before_they_are_packed():
    nodes = [node(k, 5.0 + k / 1000) for k in range(25)]
    charges = charges_of(instance(nodes, {}, 6))
    packed = packing_bound(charges, 6, 0, counting_bound(charges, 6, 0), charges.quanta(50.0))
    assert charges.time(packed) == pytest.approx(25.0, rel=1e-3), "one device holds five of them"


def test_the_cut_bound_is_the_lightest_set_around_the_heaviest_node():
    rng = random.Random(22)
    for _ in range(60):
        problem = random_instance(rng, most_groups=5)
        charges = charges_of(problem)
        blocks = charges.blocks
        everything = range(len(blocks.work))
        lightest = [
            min(
                charge(problem, stage("accelerator", *sorted(_nodes(blocks.members, chosen))))
                for size in range(1, len(everything) + 1)
                for chosen in itertools.combinations(everything, size)
                if block in chosen
            )
            for block in everything
            if blocks.on_accelerator[block]
        ]
        if all(blocks.on_accelerator):
            expected = max(lightest, default=0.0)
            found = charges.time(cut_bound(charges, 0, 0))
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def _nodes(members, chosen):
    return [n for block in chosen for n in members[block]]


def test_one_order_is_cut_as_well_as_can_be():
    rng, draw = random.Random(23), np.random.default_rng(23)
    for _ in range(150):
        size, k, m = rng.randint(1, 5), rng.randint(0, 3), rng.randint(0, 2)
        first, second = (draw.integers(0, 9, (size + 1, size + 1)) for _ in range(2))
        for table in (first, second):
            table[draw.random(table.shape) < 0.1] = 1 << 60
            np.fill_diagonal(table, 0)
        options = []
        for ends in itertools.combinations_with_replacement(range(size + 1), max(0, k + m - 1)):
            spans = list(itertools.pairwise([0, *ends, size]))
            for kinds in set(itertools.permutations([0] * k + [1] * m)):
                pairs = zip(kinds, spans, strict=True) if kinds else ()
                options.append(
                    max(
                        (0 if i == j else (second if s else first)[i, j] for s, (i, j) in pairs),
                        default=1 << 60,
                    )
                )
        found = cut_order(first, second, k, m)
        if found is None:
            assert min(options) >= 1 << 60
            continue
        assert found.largest == min(options)
        tables = (first, second)
        assert max(tables[p.second][p.first, p.last] for p in found.stages) == found.largest
        assert [p.first for p in found.stages] + [size] == [0] + [p.last for p in found.stages]
        assert sum(p.second for p in found.stages) <= m
        assert sum(not p.second for p in found.stages) <= k
