"""Four solvers give the same value: dynamic program, bisection, integer program, trying everything.

Thousands of small problems have ties, zero times, infeasible memory, several links and schedules.
The value is the integer program's objective, `finish`. On a chain it is also the bottleneck.
"""

import random
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.cost.cuts import all_cuts
from autopart.cost.in_flight import microbatches_in_flight
from autopart.cost.memory import memory, total
from autopart.errors import InfeasibleError
from autopart.pricing import predict
from autopart.records.layer_graph import is_chain
from autopart.records.layouts import Layout, layouts, own_microbatches, shapes
from autopart.records.problem import Problem
from autopart.solvers import chain_bisection, cuts_dp
from autopart.solvers.chain_of_layout import chain_of
from autopart.solvers.ilp import program as integer_program
from tests.support.oracle import partitions
from tests.support.problems import random_problem
from tests.support.seeds import seeds

BLOCKS, IN_BLOCK = 10, 200
CLOSE = 1e-9


def drawn(seed: int) -> tuple[Problem, Layout] | None:
    """A problem and one of its layouts; None if there is none."""
    rng = random.Random(seed)
    asked = random_problem(rng, branching=seed % 4 > 0, tight=rng.random() < 0.5)
    try:
        return asked, rng.choice(layouts(asked, *rng.choice(shapes(asked))))
    except InfeasibleError:
        return None


def tried(asked: Problem, layout: Layout) -> float:
    """The smallest finish over all partitions that fit; infinite if none does."""
    found = [
        integer_program.finish_of(asked, layout, partition)
        for partition in partitions(asked, len(layout.stage_ranks))
        if max(stage.peak_bytes for stage in predict(asked, layout, partition)[0])
        <= asked.cluster.memory_bytes
    ]
    return min(found, default=np.inf)


def over_cuts(asked: Problem, layout: Layout, ahead: bool) -> float:
    """The smallest finish (with `ahead`) or bottleneck by the dynamic program over all cuts."""
    cuts = all_cuts(asked.graph)
    all_totals = cuts.totals
    before = (
        all_totals.forward_time[0] + all_totals.backward_time[0]
        if ahead
        else np.zeros(len(cuts.nested))
    )
    costs = []
    for stage, period in enumerate(
        cuts_dp._periods(asked, layout, cuts, integer_program.SEND_SHARE)
    ):
        in_flight = microbatches_in_flight(layout, stage)
        needed = total(memory(all_totals, asked, len(layout.stage_ranks[stage]), in_flight))
        fits = needed <= asked.cluster.memory_bytes
        costs.append(np.where(fits, before[:, None] + period, np.inf))
    best = cuts_dp.best_path(costs, cuts.nested)
    return np.inf if best is None else best.largest


def check(seed: int) -> float | None:
    """The value on which the quick solvers agree."""
    case = drawn(seed)
    if case is None:
        return None
    asked, layout = case
    value = over_cuts(asked, layout, ahead=True)
    assert value == pytest.approx(tried(asked, layout), rel=CLOSE)
    if is_chain(asked.graph):
        cuts = all_cuts(asked.graph)
        found = chain_bisection.solve(
            *chain_of(asked, layout, cuts.totals, integer_program.SEND_SHARE)
        )
        longest = over_cuts(asked, layout, ahead=False)
        assert (found is None) == (longest == np.inf)
        if found is not None:
            runs = own_microbatches(layout, 0)
            assert found.bottleneck * runs == pytest.approx(longest, rel=CLOSE)
    return value


@pytest.mark.slow
@pytest.mark.parametrize("block", seeds(3, BLOCKS))
def test_the_dynamic_program_and_bisection_equal_trying_everything(block: int):
    values = [check(seed) for seed in range(block * IN_BLOCK, (block + 1) * IN_BLOCK)]
    known = [value for value in values if value is not None]
    assert IN_BLOCK // 2 < sum(np.isfinite(known)) < IN_BLOCK
    assert np.isinf(known).any()


@pytest.mark.slow
@given(st.integers(min_value=BLOCKS * IN_BLOCK, max_value=2**32))
def test_the_dynamic_program_and_bisection_equal_trying_everything_for_any_seed(seed: int):
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", seeds(2, 5))
def test_the_integer_program_equals_the_dynamic_program(block: int):
    for seed in range(block * 40, (block + 1) * 40):
        case = drawn(seed)
        if case is None:
            continue
        asked, layout = case
        value = over_cuts(asked, layout, ahead=True)
        found = integer_program.solve(asked, layout, None, time.perf_counter() + 30)
        assert (found is None) == (value == np.inf)
        if found is not None:
            assert integer_program.finish_of(asked, layout, found) == pytest.approx(value, rel=1e-5)
