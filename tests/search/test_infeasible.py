"""An infeasible message names exactly the options that would make the problem feasible."""

import random

import msgspec
import pytest

from autopart.errors import InfeasibleError
from autopart.records.layouts import shapes
from autopart.records.problem import Demands, Problem
from autopart.records.training import Training
from autopart.search.infeasible import why_infeasible
from autopart.search.planner import solve
from tests.activations.test_frontier import drawn
from tests.support.problems import chain_graph, cluster, layer, profile
from tests.support.searches import searched
from tests.support.seeds import seeds

OPTIONS = {
    "--zero1": {"training": {"zero1": True}},
    "--recompute auto": {"demands": {"recompute": "auto"}},
    "--offload auto": {"demands": {"offload": "auto"}},
    "--offload-optimizer auto": {"demands": {"offload_optimizer": "auto"}},
}


def allowing(asked: Problem, *options: str) -> Problem:
    for option in options:
        for field, changes in OPTIONS[option].items():
            changed = msgspec.structs.replace(getattr(asked, field), **changes)
            asked = msgspec.structs.replace(asked, **{field: changed})
    return asked


def can_be_solved(asked: Problem) -> bool:
    return searched(asked).best is not None


def infeasible_problem(seed: int) -> Problem | None:
    """A random problem where nothing fits; None if there is no shape."""
    rng = random.Random(seed)
    asked = drawn(seed, demands=Demands())
    training = Training(precision="bfloat16-mixed", gradient_dtype="bfloat16")
    asked = msgspec.structs.replace(asked, training=training)
    try:
        shapes(asked)
    except InfeasibleError:
        return None
    for _ in range(20):
        if not can_be_solved(asked):
            return asked
        smaller = int(asked.cluster.memory_bytes * rng.uniform(0.6, 0.95))
        machine = msgspec.structs.replace(asked.cluster, memory_bytes=max(1, smaller))
        asked = msgspec.structs.replace(asked, cluster=machine)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("block", seeds(1, 10, slow=3))
def test_the_message_names_exactly_the_options_that_would_do(block: int) -> None:
    alone, together = 0, 0
    for seed in range(10 * block, 10 * block + 10):
        asked = infeasible_problem(seed)
        if asked is None:
            continue
        said = str(why_infeasible(asked, "auto"))
        named = [option for option in OPTIONS if option in said]
        would_do = [option for option in OPTIONS if can_be_solved(allowing(asked, option))]
        if would_do:
            assert named == would_do, (seed, said)
            alone += 1
        elif named:
            assert "together they would do" in said
            assert can_be_solved(allowing(asked, *named)), (seed, said)
            for option in named:
                fewer = [other for other in named if other != option]
                assert not can_be_solved(allowing(asked, *fewer)), (seed, said)
            together += 1
        else:
            assert not can_be_solved(allowing(asked, *OPTIONS)), (seed, said)
            assert "try more memory" in said
    assert alone or together


@pytest.mark.parametrize("solver", ["uniform", "parameters"])
def test_a_split_by_rule_that_breaks_a_pin_is_no_plan(solver: str):
    row = profile(chain_graph(*(layer(f"l{i}", param_bytes=1) for i in range(4))))
    with pytest.raises(InfeasibleError, match=r"split.* keeps .*l2.* try --solver auto"):
        solve(
            row,
            cluster(1, 2),
            num_microbatches=2,
            num_stages=2,
            solver=solver,
            pins={"l2": 0},
        )
    plan = solve(
        row, cluster(1, 2), num_microbatches=2, num_stages=2, solver=solver, pins={"l0": 0}
    )
    assert "l0" in plan.stages[0].layers
