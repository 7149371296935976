"""Laws that the planner's answers obey, whatever the problem.

A larger space, more memory and faster links are never worse. Twice the seconds give twice the answer, to the last
digit. Names and the order of lists do not matter.
"""

import random

import msgspec
import pytest

from autopart.cost.stage_times import plan_bottleneck
from autopart.errors import InfeasibleError
from autopart.records.cluster import cluster_of
from autopart.records.plan import Plan
from autopart.records.problem import Problem
from autopart.records.profile import load_profile
from autopart.records.training import make_training
from autopart.search.planner import solve
from tests.support.places import ROOT
from tests.support.seeds import seeds
from tests.support.witness.cases import Case, draw_case, keywords
from tests.support.witness.laws import (
    CHOICES,
    LARGER,
    Change,
    faster_links,
    more_memory,
    more_schedules,
    one_more_node,
    renamed,
    twice_as_slow,
    without_host,
)

SAME = 1e-9
KINDS = ("nodes", "branches", "policies", "replicas per stage", "different GPUs", "other schedules",
         "pins", "bottleneck", "networks")  # fmt: skip


def seeds_of(block: int, count: int = 4) -> range:
    """The seeds of one block; the first block has one alone, for the quick suite."""
    return range(1) if block == 0 else range(count * block, count * (block + 1))


def solved(problem: Problem) -> Plan | None:
    """The planner's plan; None where it says that there is none."""
    case = Case(0, "law", (problem,))
    try:
        return solve(case.profiles, problem.cluster, **keywords(problem))
    except InfeasibleError:
        return None


def drawn(kind: str, seed: int) -> Problem:
    return draw_case(kind, seed).problems[0]


def value(plan: Plan) -> float:
    return plan.prediction.step_time if plan.objective == "step" else plan_bottleneck(plan)


@pytest.mark.slow
@pytest.mark.parametrize("change", LARGER, ids=lambda change: change.__name__)
@pytest.mark.parametrize("block", seeds(1, 9, slow=1))
def test_more_of_anything_is_never_worse(change: Change, block: int):
    tried = 0
    for seed in seeds_of(block):
        for kind in KINDS if block else KINDS[::2]:
            small = without_host(drawn(kind, 50_000 + seed))
            large = change(small)
            if large is None:
                continue
            before, after = solved(small), solved(large)
            if before is None:
                continue
            tried += 1
            assert after is not None, (kind, seed)
            assert after.certificate.lower_bound <= value(before) * (1 + SAME), (kind, seed)
            # On another cluster the search starts anew, and may end within its gap.
            if change in CHOICES or after.certificate.gap == 0:
                assert value(after) <= value(before) * (1 + SAME), (kind, seed)
    assert tried


@pytest.mark.parametrize("kind", (*KINDS, "mixtures"))
@pytest.mark.parametrize("block", seeds(1, 9, slow=3))
def test_seconds_times_two_give_twice_the_answer_to_the_last_digit(kind: str, block: int):
    for seed in seeds_of(block):
        problem = drawn(kind, 60_000 + seed)
        plan, slow = solved(problem), solved(twice_as_slow(problem))
        assert (plan is None) == (slow is None), seed
        if plan is not None and slow is not None:
            assert value(slow) == 2 * value(plan), seed
            assert slow.certificate.lower_bound == 2 * plan.certificate.lower_bound, seed
            assert slow.certificate.any_order_bound == 2 * plan.certificate.any_order_bound, seed
            assert slow.stages == plan.stages and slow.orders == plan.orders, seed


def kinds_and_blocks() -> list[object]:
    """Each kind with each block. The first block of every second kind is a slow test, and the second of the others."""
    return [
        pytest.param(kind, block, marks=() if block == at % 2 else pytest.mark.long)
        for at, kind in enumerate((*KINDS, "mixtures"))
        for block in range(9)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "block"), kinds_and_blocks())
def test_names_and_the_order_of_lists_do_not_matter(kind: str, block: int):
    for seed in seeds_of(block):
        problem = drawn(kind, 70_000 + seed)
        again, old = renamed(problem, random.Random(seed))
        plan, other = solved(problem), solved(again)
        assert (plan is None) == (other is None), seed
        if plan is not None and other is not None:
            assert value(other) == pytest.approx(value(plan), rel=1e-12), seed
            bounds = (plan.certificate.lower_bound, plan.certificate.any_order_bound)
            others = (other.certificate.lower_bound, other.certificate.any_order_bound)
            assert others == pytest.approx(bounds, rel=1e-9), seed
            names = {old[name] for stage in other.stages for name in stage.layers}
            assert names == {la.name for la in problem.graph.layers}


@pytest.mark.parametrize("block", seeds(1, 9, slow=3))
def test_another_microbatch_size_is_never_worse(block: int):
    for seed in seeds_of(block, 8):
        case = draw_case("sizes", 80_000 + seed)
        words = keywords(case.problems[0], several=True)
        cluster = case.problems[0].cluster
        try:
            few = solve(case.profiles[:1], cluster, **words)
        except InfeasibleError:
            continue
        all_sizes = solve(case.profiles, cluster, **words)
        assert all_sizes.certificate.lower_bound <= value(few) * (1 + SAME), seed
        assert value(all_sizes) <= value(few) * (1 + SAME), seed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet-base", "resnet-50", "gpt2-1.3b", "encdec-base"])
def test_laws_hold_on_models_of_the_zoo(name: str):
    model = load_profile(next((ROOT / "profiles").glob(f"{name}-*.json")))
    small = Problem(
        graph=model.graph,
        cluster=cluster_of("h100-sxm", gpus=4, nodes=2),
        microbatch_size=1,
        num_microbatches=8,
        training=make_training(model.dtype),
    )
    plan, slow = solved(small), solved(twice_as_slow(small))
    assert plan is not None and slow is not None
    assert value(slow) == pytest.approx(2 * value(plan), rel=SAME)
    # These changes are few, and the gaps small: the search finds no worse plan.
    for change in (more_memory, faster_links, one_more_node, more_schedules):
        large = change(small)
        assert large is not None
        after = solved(large)
        assert after is not None, change.__name__
        assert after.certificate.lower_bound <= value(plan) * (1 + SAME), change.__name__
        assert value(after) <= value(plan) * (1 + SAME), change.__name__


def test_the_changes_keep_what_they_should():
    """A change that changed nothing, or too much, would make its law empty."""
    problem = drawn("policies", 1)
    slow = twice_as_slow(problem)
    assert slow.graph.layers[0].input_grad_time == 2 * problem.graph.layers[0].input_grad_time
    assert slow.cluster.intra_node.bandwidth == problem.cluster.intra_node.bandwidth / 2
    assert twice_as_slow(slow).graph != slow.graph
    again, old = renamed(problem, random.Random(1))
    assert [old[la.name] for la in again.graph.layers] == [la.name for la in problem.graph.layers]
    bytes_before = msgspec.structs.replace(problem.graph.layers[0], name="")
    assert msgspec.structs.replace(again.graph.layers[0], name="") == bytes_before
