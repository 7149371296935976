"""Plans of every kind with each leaf, list and object altered: refused, or harmless by name."""

import json
import random
import time
from collections.abc import Iterable

import pytest

from autopart.certificate.plan_problem import PlanProblem
from autopart.certificate.verify import verify
from autopart.errors import AutopartError
from autopart.records.files import decode, encode
from autopart.records.plan import FORMAT, VERSION, Plan
from autopart.records.profile import Profile
from autopart.records.rank_group import group_size
from autopart.search.microbatch_sizes import search_sizes, value_of
from tests.support.alterations import Alteration, alterations
from tests.support.long_tests import long_tests
from tests.support.plan_kinds import KINDS, plan_of_kind

ANNOTATIONS = {
    "origin.solver": "another known solver might have found the plan",
    "origin.solve_seconds": "nobody can measure the search again",
    "origin.autopart": "a version that nobody can check",
    "origin.orders.method": "words on a search that nobody can repeat",
    "cluster.gpu": "a name; the figures beside it count",
    "cluster.gpus.*.name": "a name; the figures beside it count",
    "cluster.source": "words on where the figures come from",
}
"""Leaves that say nothing about the plan; docs/plan-format.md calls them annotations."""

SAME_PLAN = {
    "version: minus 1": "the plan is read as one of the version before",
    "orders.*: more spaces": "spaces separate actions, whatever their number",
    "origin.orders.orders_without_cap.*: more spaces": "the same",
    "stages.*.offload: swapped": "the list is a set",
    "stages.*.offload: backwards": "the list is a set",
    "stages.*.selective: swapped": "the list is a set",
    "stages.*.selective: backwards": "the list is a set",
}
"""Other spellings of the same plan."""

OTHER_PLAN = {
    "orders.*: last parts swapped": "other orders with the same step, simulated again",
    "origin.orders.orders_without_cap.*: last parts swapped": "the same",
    "schedule: the word gpipe": "one stage has the same orders under GPipe and 1F1B",
}
"""Another valid plan, whose numbers are equal."""

OTHER_PROBLEM = (
    "cluster.",
    "demands.",
    "sizes.*.lower_bound",
    "training.optimizer",
    "training.zero1",
)
"""Places that pose another problem. The plan answers it, and no plan found by a search is faster.

These are figures that the plan does not touch (links between nodes that it does not cross, memory
that it does not need), demands that it keeps anyway, optimizers with equal bytes, and bounds of other
sizes, which may be higher.
"""

SLOW_KINDS = ("orders of their own under a memory limit",)
"""Some alterations of these plans take seconds."""

IN_CI = (
    "interleaved",
    "zero bubble",
    "replicas per stage",
    "any tensor degree",
    "bottleneck",
    "selective recompute",
    "everything at once",
    "a size without a plan",
    "pins",
    "zero-1 in mixed precision",
    "different GPUs",
    "idle GPUs on a slow machine",
)
"""Kinds of plans. The slow tests take a third of their alterations."""

SECONDS = 1.0
"""Time for each search; most need some milliseconds, and own orders as much as they get."""


def read(altered: Alteration) -> Plan | None:
    """The altered plan as a command reads it; None where it is refused then."""
    content = json.dumps(altered.tree).encode()
    try:
        return decode(content, Plan, FORMAT, VERSION, where="altered")
    except AutopartError:
        return None


def check_refused_or_harmless(
    plan: Plan, profiles: list[Profile], cases: Iterable[Alteration]
) -> None:
    """Each alteration is refused without a crash, or is harmless for a reason above."""
    for case in cases:
        altered = read(case)
        if altered is None or altered == plan:
            continue
        if not all(check.passed for check in verify(altered, profiles)):
            continue
        name = f"{case.place}: {case.how}"
        if case.place in ANNOTATIONS or name in SAME_PLAN or name in OTHER_PLAN:
            continue
        if case.place == "certificate.gap" and differ_by_rounding(altered, plan):
            continue
        assert case.place.startswith(OTHER_PROBLEM), name
        assert nothing_is_faster(altered, profiles), name


def differ_by_rounding(altered: Plan, plan: Plan) -> bool:
    """Whether the gap is as good as 0, before and after."""
    ours, theirs = plan.certificate.gap, altered.certificate.gap
    return ours is not None and theirs is not None and abs(ours - theirs) < 1e-9


def nothing_is_faster(plan: Plan, profiles: list[Profile]) -> bool:
    """Whether a short search for the plan's own problem finds nothing below its bounds."""
    given = PlanProblem(plan, profiles)
    problems = [given.problem_at(size) for size in plan.sizes]
    found = search_sizes(problems, "auto", time.perf_counter() + SECONDS)
    return all(
        value_of(problem, outcome) >= (size.lower_bound or 0.0) * (1 - 1e-9)
        for problem, outcome, size in zip(problems, found.outcomes, plan.sizes, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_of_every_kind_passes_as_it_is(kind: str):
    plan, profiles = plan_of_kind(kind)
    assert [check for check in verify(plan, profiles) if not check.passed] == []


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow if kind in SLOW_KINDS else ()) for kind in KINDS],
)
def test_some_alterations_are_refused_or_harmless(kind: str):
    plan, profiles = plan_of_kind(kind)
    cases = list(alterations(json.loads(encode(plan))))
    check_refused_or_harmless(plan, profiles, random.Random(1).sample(cases, 40))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in IN_CI else long_tests(kind)[0]
        for kind in KINDS
        if not kind.startswith("orders of their own")
    ],
)
def test_more_alterations_are_refused_or_harmless(kind: str):
    plan, profiles = plan_of_kind(kind)
    cases = list(alterations(json.loads(encode(plan))))
    check_refused_or_harmless(plan, profiles, random.Random(2).sample(cases, len(cases) // 3))


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_every_alteration_is_refused_or_harmless(kind: str):
    plan, profiles = plan_of_kind(kind)
    check_refused_or_harmless(plan, profiles, alterations(json.loads(encode(plan))))


def test_the_kinds_have_the_properties_that_their_names_say():
    plans = {kind: plan_of_kind(kind)[0] for kind in KINDS}
    assert any(stage.recompute for stage in plans["recompute"].stages) and any(
        stage.selective for stage in plans["selective recompute"].stages
    )
    assert any(stage.offload for stage in plans["offload"].stages)
    assert all(stage.optimizer_on_host for stage in plans["optimizer on the host"].stages)
    custom = plans["orders of their own under a memory limit"]
    assert custom.origin.orders is not None and custom.origin.orders.orders_without_cap
    assert len({len(stage.ranks) for stage in plans["replicas per stage"].stages}) == 2
    assert plans["a size without a plan"].sizes[1].lower_bound is None
    assert len(plans["several sizes"].sizes) == 3
    assert plans["zero-1 in mixed precision"].training.zero1
    assert plans["bottleneck"].objective == "bottleneck"
    degrees = [group_size(plans[kind].group) for kind in ("a tensor degree", "any tensor degree")]
    assert degrees == [2, 2]
    assert len(plans["any tensor degree"].sizes) == 3
    schedules = {plan.schedule for plan in plans.values()}
    assert schedules >= {"gpipe", "1f1b", "eager-1f1b", "interleaved-1f1b", "zbv", "custom"}
