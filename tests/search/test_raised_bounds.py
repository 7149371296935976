"""The lower bound of `--schedule auto`, raised by all stages of each rank together."""

import random

import msgspec
import pytest

from autopart.bounds.any_order_shapes import any_order_shape_bound
from autopart.bounds.of_layout import LayoutBounds
from autopart.certificate.bound import check_bound
from autopart.errors import PlanError
from autopart.records.problem import SCHEDULES, Demands, Problem
from autopart.search.branch_and_bound import BranchAndBound
from autopart.search.phases import run_phases
from tests.support.problems import chain_graph, cluster, layer, problem, random_problem
from tests.support.seeds import seeds


def searched(asked: Problem) -> BranchAndBound:
    """The search of a problem, without a time limit."""
    search = BranchAndBound(asked, "auto")
    run_phases(search, float("inf"))
    return search


def own_orders(asked: Problem) -> Problem:
    """The problem with every schedule and own orders."""
    demands = msgspec.structs.replace(asked.demands, schedules=tuple(SCHEDULES))
    return msgspec.structs.replace(asked, demands=demands)


def five_layers() -> Problem:
    """Five equal layers of 3 s on two ranks, so that one rank has three."""
    graph = chain_graph(*(layer(f"l{i}") for i in range(5)), num_bytes=0)
    asked = problem(graph, 3, cluster=cluster(1, 2), demands=Demands(num_replicas=1))
    return own_orders(asked)


@pytest.mark.slow
def test_the_bound_counts_whole_layers_and_is_proven_again():
    asked = five_layers()
    found = searched(asked).outcome()
    assert any_order_shape_bound(asked, (2, 1), split=True) < 3 * 3 * 3
    assert found.lower_bound >= 3 * 3 * 3
    check_bound(asked, found.lower_bound, found.simulated)


@pytest.mark.slow
def test_a_bound_above_the_best_plan_is_refused():
    asked = five_layers()
    found = searched(asked).outcome()
    assert found.best is not None
    with pytest.raises(PlanError, match="is not proven"):
        check_bound(asked, found.best.prediction.step_time * 1.01, 0)


@pytest.mark.slow
def test_a_value_that_is_refuted_no_more_for_all_layouts_falls_back(
    monkeypatch: pytest.MonkeyPatch,
):
    # One layout refutes a large value, and no smaller one.
    real = LayoutBounds.refutes

    def only_large(bounds: LayoutBounds, seconds: float) -> bool:
        return seconds > 28.5 and real(bounds, seconds)

    monkeypatch.setattr(LayoutBounds, "refutes", only_large)
    asked = five_layers()
    found = searched(asked).outcome()
    check_bound(asked, found.lower_bound, found.simulated)


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(3, 60, slow=6))
def test_a_raised_bound_is_proven_again_and_reaches_no_plan(seed: int):
    rng = random.Random(300 + seed)
    asked = own_orders(random_problem(rng, branching=rng.random() < 0.3, tight=rng.random() < 0.6))
    search = searched(asked)
    found = search.outcome()
    if found.best is None:
        pytest.skip("nothing fits")
    assert found.lower_bound <= found.best.prediction.step_time
    # No bound needs to pass the best step.
    least = min((found.best.prediction.step_time, *(place.bound for place in search.open)))
    assert found.lower_bound >= least * (1 - 1e-12)
    check_bound(asked, found.lower_bound, found.simulated)
