import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.cost.cuts import all_cuts
from autopart.cost.in_flight import microbatches_in_flight
from autopart.cost.memory import memory, total
from autopart.cost.stage_times import busy_time, cut_links, links_around, traffic_times
from autopart.records.layer_graph import is_chain
from autopart.records.layouts import layouts, shapes
from autopart.solvers import chain_bisection
from autopart.solvers import cuts_dp as chain_solver
from autopart.solvers.chain import Chain, MemoryLimit, Sizes, prefix
from autopart.solvers.chain_of_layout import chain_of
from tests.support.problems import random_problem
from tests.support.seeds import seeds


def chain(work, sends=None, overhead=0.0, limit=None):
    """A chain whose layers take `work` seconds, by default without sends."""
    sends = [[0.0] * (len(work) + 1)] if sends is None else sends
    return Chain(
        prefix(np.array(work, dtype=float)),
        tuple(np.array(s, float) for s in sends),
        overhead,
        limit,
    )


def sizes(layers, received=None, sent=None):
    """Bytes of layers, and at each cut the bytes received and sent (0 by default)."""
    nothing = np.zeros(len(layers) + 1, dtype=np.int64)
    return Sizes(
        prefix(np.array(layers, dtype=np.int64)),
        nothing if received is None else np.array(received),
        nothing if sent is None else np.array(sent),
    )


def size_of(bytes_of, i, j):
    if not isinstance(bytes_of, tuple):
        return bytes_of[i, j]
    return bytes_of.layers[j] - bytes_of.layers[i] + bytes_of.received[i] + bytes_of.sent[j]


def stage_time(of, links, stage, i, j):
    """Seconds of a stage by the formula in the module's docstring."""
    before = of.sends[links[stage - 1]][i] if stage else 0.0
    after = of.sends[links[stage]][j] if stage < len(links) else 0.0
    return (of.work[j] + after) - (of.work[i] - (before + of.overhead))


def fits(of, y, i, j):
    limit = of.memory
    if limit is None:
        return True
    return y * size_of(limit.stash, i, j) <= limit.capacity - size_of(limit.state, i, j)


def tried(of, links, in_flight):
    """The bottlenecks of all partitions that fit."""
    n, k = len(of.work) - 1, len(in_flight)
    for inner in itertools.combinations(range(1, n), k - 1):
        spans = list(itertools.pairwise((0, *inner, n)))
        if all(fits(of, y, i, j) for y, (i, j) in zip(in_flight, spans, strict=True)):
            yield max(stage_time(of, links, s, i, j) for s, (i, j) in enumerate(spans))


def random_chain(rng):
    """A chain with at most 9 layers in at most 6 stages.

    It has ties, zeros, heavy layers, two kinds of links, and often tight memory.
    """
    n = rng.randint(1, 9)
    k = min(6, rng.randint(1, n + 1))
    number = rng.choice([lambda most: rng.randint(0, most), lambda most: rng.uniform(0, most)])
    work = [number(9) * (rng.random() < 0.8) for _ in range(n)]
    if rng.random() < 0.2:
        work[rng.randrange(n)] = 100
    kinds = rng.randint(1, 2)
    sends = [[0, *(number(rng.choice([0, 3, 20])) for _ in range(n - 1)), 0] for _ in range(kinds)]
    limit = None
    if rng.random() < 0.7:

        def some(most):
            return [rng.randint(0, most) for _ in range(n + 1)]

        state, stash = (sizes(some(9)[1:], some(rng.choice([0, 6])), some(6)) for _ in range(2))
        if rng.random() < 0.3:
            state = np.array([some(30) for _ in range(n + 1)])
        limit = MemoryLimit(rng.randint(5, 150), state, stash)
    microbatches = rng.randint(1, 8)
    return (
        chain(work, sends, rng.choice([0.0, 0.5]), limit),
        [rng.randrange(kinds) for _ in range(k - 1)],
        [min(microbatches, k - s) for s in range(k)],
    )


def check(seed):
    of, links, in_flight = random_chain(random.Random(seed))
    found = chain_bisection.solve(of, links, in_flight)
    best = min(tried(of, links, in_flight), default=None)
    if found is None:
        assert best is None
        return False
    assert found.bottleneck == best
    assert found.cuts[0] == 0 and found.cuts[-1] == len(of.work) - 1
    spans = list(itertools.pairwise(found.cuts))
    assert len(spans) == len(in_flight) and all(i < j for i, j in spans)
    assert max(stage_time(of, links, s, i, j) for s, (i, j) in enumerate(spans)) == best
    assert all(fits(of, y, i, j) for y, (i, j) in zip(in_flight, spans, strict=True))
    times = {
        stage_time(of, links, s, i, j)
        for s in range(len(in_flight))
        for i, j in itertools.combinations(range(len(of.work)), 2)
        if (s == 0) <= (i == 0) and (s == len(in_flight) - 1) <= (j == len(of.work) - 1)
    }
    if found.infeasible is None:
        assert min(times) >= best
    else:
        assert found.infeasible < best
        assert not [time for time in times if found.infeasible < time < best]
    return True


@pytest.mark.slow
@pytest.mark.parametrize("block", seeds(4, 8))
def test_the_partition_is_best_and_no_stage_time_lies_between_bound_and_bottleneck(block):
    feasible = sum(check(seed) for seed in range(block * 400, block * 400 + 400))
    assert 200 < feasible < 400, "some chains fit and some do not"


@pytest.mark.slow
@given(st.integers(0, 2**63))
def test_the_partition_is_best_for_any_chain(seed):
    check(seed)


def longer_chain(rng):
    n = int(rng.integers(20, 60))
    k = int(rng.integers(2, 14))
    work = rng.uniform(0.5, 1.5, n) * (rng.random(n) < 0.7)
    sends = [[0, *rng.uniform(0, 2, n - 1), 0] for _ in range(2)]
    in_flight = [k - s for s in range(k)]
    state, stash = (
        sizes(rng.integers(0, 99, n)),
        sizes(rng.integers(0, 30, n), rng.integers(0, 30, n + 1)),
    )
    needed = (state.layers[-1] + k * stash.layers[-1]) / k
    limit = MemoryLimit(int(needed * rng.uniform(0.8, 2.0)), state, stash)
    return chain(work, sends, 0.1, limit), rng.integers(0, 2, k - 1).tolist(), in_flight


@pytest.mark.parametrize("seed", seeds(20, 150))
def test_longer_chains_agree_with_the_dynamic_program(seed):
    of, links, in_flight = longer_chain(np.random.default_rng(seed))
    cuts = range(len(of.work))
    costs = [
        np.array(
            [
                [
                    stage_time(of, links, s, i, j) if i < j and fits(of, y, i, j) else np.inf
                    for j in cuts
                ]
                for i in cuts
            ]
        )
        for s, y in enumerate(in_flight)
    ]
    nested = np.arange(len(cuts))[:, None] < np.arange(len(cuts))
    best = chain_solver.best_path(costs, nested)
    found = chain_bisection.solve(of, links, in_flight)
    assert (found is None) == (best is None)
    if found is not None and best is not None:
        assert found.bottleneck == best.largest


@pytest.mark.slow
def test_bisection_and_the_dynamic_program_agree_on_layouts():
    rng, agreed = random.Random(7), 0
    for _ in range(300):
        problem = random_problem(rng, branching=False, tight=rng.random() < 0.5)
        cuts = all_cuts(problem.graph)
        if not is_chain(problem.graph):
            continue
        for layout in (one for shape in shapes(problem) for one in layouts(problem, *shape)):
            share = rng.choice([0.0, 0.5, 1.0])
            best = chain_solver.best_path(_costs(problem, layout, cuts.totals, share), cuts.nested)
            found = chain_bisection.solve(*chain_of(problem, layout, cuts.totals, share))
            assert (found is None) == (best is None)
            if found is not None and best is not None:
                assert found.bottleneck == pytest.approx(best.largest, rel=1e-9)
                agreed += 1
    assert agreed > 500


def _costs(problem, layout, all_totals, share):
    stages, costs = len(layout.stage_ranks), []
    links = cut_links(problem.cluster, layout.stage_ranks)
    for stage in range(stages):
        before, after = links_around(links, stage)
        period = busy_time(all_totals, problem.cluster, before, after)
        if problem.cluster.sends_overlap:
            sends = sum(traffic_times(all_totals.sent, after)) + sum(
                traffic_times(all_totals.received, before)
            )
            period = period + share * sends
        replicas = len(layout.stage_ranks[stage])
        needed = total(memory(all_totals, problem, replicas, microbatches_in_flight(layout, stage)))
        costs.append(np.where(needed <= problem.cluster.memory_bytes, period, np.inf))
    return costs


def test_a_longer_stage_can_take_less_time_than_a_shorter_one():
    """Filling the first stage up to 8 s would end it at the cut with the slowest send."""
    of = chain([3, 2, 3, 3], sends=[[0, 4, 3, 9, 0]])
    found = chain_bisection.solve(of, [0], [1, 1])
    assert found == (9.0, (0, 2, 4), 8.0)
    assert chain_bisection.solve(chain([1, 1, 4], sends=[[0, 9, 0, 0]]), [0], [2, 1]) == (
        4.0,
        (0, 2, 3),
        2.0,
    )


def test_one_stage_has_all_layers_and_as_many_stages_as_layers_have_one_each():
    of = chain([3, 0, 5], sends=[[0, 1, 2, 0]], overhead=0.5)
    assert chain_bisection.solve(of, [], [1]) == (8.5, (0, 3), 7.5)
    each = chain_bisection.solve(of, [0, 0], [1, 1, 1])
    assert each is not None and (each.bottleneck, each.cuts) == (7.5, (0, 1, 2, 3))


def test_more_stages_than_layers_have_no_partition():
    assert chain_bisection.solve(chain([1, 1]), [0, 0], [1, 1, 1]) is None


def test_layers_that_take_no_time_can_be_cut_anywhere():
    found = chain_bisection.solve(chain([0] * 50), [0] * 9, [10 - s for s in range(10)])
    assert found is not None and found.bottleneck == 0.0 and found.infeasible is None


def test_a_layer_that_dominates_is_the_bottleneck():
    work = [1.0] * 40 + [500.0] + [1.0] * 40
    found = chain_bisection.solve(chain(work), [0] * 9, [1] * 10)
    assert found is not None and found.bottleneck == 500.0


def test_the_first_stage_has_more_microbatches_in_flight_and_gets_fewer_layers():
    limit = MemoryLimit(420, sizes([0] * 6), sizes([100] * 6))
    found = chain_bisection.solve(chain([1] * 6, limit=limit), [0], [2, 1])
    assert found is not None and found.cuts == (0, 2, 6)
    tight = MemoryLimit(399, limit.state, limit.stash)
    assert chain_bisection.solve(chain([1] * 6, limit=tight), [0], [2, 1]) is None


def test_a_cut_over_a_slow_link_costs_more_than_over_a_fast_one():
    of = chain([1] * 8, sends=[[0, *[5.0] * 7, 0], [0, *[0.0] * 7, 0]])
    slow_first = chain_bisection.solve(of, [0, 1, 1], [1] * 4)
    assert slow_first is not None and slow_first.bottleneck == 6.0
    assert chain_bisection.solve(of, [1, 1, 1], [1] * 4) == (2.0, (0, 2, 4, 6, 8), 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_without_sends_bisection_needs_no_more_than_stages_filled_in_turn(seed):
    rng = np.random.default_rng(seed)
    work, stages = rng.uniform(0.2, 1, 2000), 300
    found = chain_bisection.solve(chain(work), [0] * (stages - 1), [1] * stages)
    assert found is not None and found.infeasible is not None
    assert _filled(work, found.bottleneck * (1 + 1e-12)) <= stages
    assert _filled(work, found.infeasible) > stages


def _filled(work, most):
    """The number of stages if each is filled up to `most` seconds."""
    stages, left = 1, most
    for time in work:
        if time > left:
            stages, left = stages + 1, most
        left -= time
    return stages


def test_many_layers_with_equal_times_are_divided_evenly():
    found = chain_bisection.solve(
        chain([0.1] * 3000), [0] * 99, [min(8, 100 - s) for s in range(100)]
    )
    assert found is not None and found.bottleneck == pytest.approx(3.0, rel=1e-9)


def test_each_prefix_sum_is_rounded_once():
    values = [0.1] * 1000 + [1e-9] * 1000
    sums = prefix(np.array(values))
    assert sums[-1] == pytest.approx(100.000001, rel=1e-15)
    assert prefix([2**60, 1, 1]).tolist() == [0, 2**60, 2**60 + 1, 2**60 + 2]
