"""Four ways to the same value: the dynamic program over cuts, the probe, the integer program, trying all.

Thousands of small problems with ties, zero times, infeasible memory, several links and schedules. The
value is the objective of the integer program, `finish`; on a chain the probe's, the bottleneck, too.
"""

import random
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.cost import in_flight, memory, predict, total
from autopart.cuts import all_cuts
from autopart.errors import InfeasibleError
from autopart.graph import is_chain
from autopart.layouts import Layout, layouts, own_microbatches, shapes
from autopart.problem import Problem
from autopart.solvers import chain, ilp, probe
from autopart.solvers.layout_chain import chain_of
from tests.oracle import partitions
from tests.problems import random_problem
from tests.seeds import seeds

BLOCKS, IN_BLOCK = 10, 200
CLOSE = 1e-9


def drawn(seed: int) -> tuple[Problem, Layout] | None:
    """A problem and a layout of it; None where no layout is possible."""
    rng = random.Random(seed)
    asked = random_problem(rng, branching=seed % 4 > 0, tight=rng.random() < 0.5)
    try:
        return asked, rng.choice(layouts(asked, *rng.choice(shapes(asked))))
    except InfeasibleError:
        return None


def tried(asked: Problem, layout: Layout) -> float:
    """The smallest finish of all partitions that fit; infinite where none does."""

    found = [
        ilp.finish_of(asked, layout, partition)
        for partition in partitions(asked, len(layout.stage_ranks))
        if max(stage.peak_bytes for stage in predict(asked, layout, partition)[0])
        <= asked.cluster.memory_bytes
    ]
    return min(found, default=np.inf)


def over_cuts(asked: Problem, layout: Layout, ahead: bool) -> float:
    """The smallest finish, or bottleneck of the step, by the dynamic program over all cuts."""
    cuts = all_cuts(asked.graph)
    loads = cuts.loads
    before = loads.forward_time[0] + loads.backward_time[0] if ahead else np.zeros(len(cuts.nested))
    costs = []
    for stage, period in enumerate(chain._periods(asked, layout, cuts, ilp.SEND_SHARE)):
        held = in_flight(layout, stage)
        needed = total(memory(loads, asked, len(layout.stage_ranks[stage]), held))
        fits = needed <= asked.cluster.memory_bytes
        costs.append(np.where(fits, before[:, None] + period, np.inf))
    best = chain.best_path(costs, cuts.nested)
    return np.inf if best is None else best.largest


def check(seed: int) -> float | None:
    """The value, the same in every way that is quick."""
    case = drawn(seed)
    if case is None:
        return None
    asked, layout = case
    value = over_cuts(asked, layout, ahead=True)
    assert value == pytest.approx(tried(asked, layout), rel=CLOSE)
    if is_chain(asked.graph):
        cuts = all_cuts(asked.graph)
        found = probe.solve(*chain_of(asked, layout, cuts.loads, ilp.SEND_SHARE))
        longest = over_cuts(asked, layout, ahead=False)
        assert (found is None) == (longest == np.inf)
        if found is not None:
            runs = own_microbatches(layout, 0)
            assert found.bottleneck * runs == pytest.approx(longest, rel=CLOSE)
    return value


@pytest.mark.parametrize("block", seeds(5, BLOCKS))
def test_the_program_over_cuts_and_the_probe_equal_trying_everything(block: int):
    values = [check(seed) for seed in range(block * IN_BLOCK, (block + 1) * IN_BLOCK)]
    known = [value for value in values if value is not None]
    assert IN_BLOCK // 2 < sum(np.isfinite(known)) < IN_BLOCK
    assert np.isinf(known).any()


@given(st.integers(min_value=BLOCKS * IN_BLOCK, max_value=2**32))
def test_the_program_over_cuts_and_the_probe_equal_trying_everything_whatever_is_drawn(seed: int):
    check(seed)


@pytest.mark.parametrize("block", seeds(2, 5))
def test_the_integer_program_equals_the_program_over_cuts(block: int):
    for seed in range(block * 40, (block + 1) * 40):
        case = drawn(seed)
        if case is None:
            continue
        asked, layout = case
        value = over_cuts(asked, layout, ahead=True)
        found = ilp.solve(asked, layout, None, time.perf_counter() + 30)
        assert (found is None) == (value == np.inf)
        if found is not None:
            assert ilp.finish_of(asked, layout, found) == pytest.approx(value, rel=1e-5)
