"""Solving for loads of experts that are not equal: the options, the price, and what a plan says of it."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from autopart.certificate.verify import verify
from autopart.errors import AutopartError
from autopart.records.cluster import Link
from autopart.records.expert_load import LayerLoad
from autopart.records.group_choice import GroupDemand
from autopart.records.plan import Plan, load_plan, save_plan
from autopart.records.profile import Profile
from autopart.report.plan_summary import plan_summary
from autopart.report.plan_table import figures
from autopart.search.options_of_plan import options_of
from autopart.search.planner import solve, solve_with_options
from tests.support.expert_profiles import with_experts
from tests.support.problems import cluster

LOAD = LayerLoad(layer="experts", expert=2, imbalance=1.5, largest=2.0)
GIVEN = with_experts(loads=[LOAD])


def solved(given: Profile = GIVEN, **options: Any) -> Plan:
    words: dict[str, Any] = {"num_microbatches": 4, "expert": "2", "num_replicas": 1}
    # A link without latency: an all-to-all of 1,000 bytes among two is 500 bytes on the link.
    machine = cluster(1, 2, intra_node=Link(bandwidth=1000.0))
    return solve(given, machine, **(words | options))


def test_a_given_imbalance_is_priced_as_by_hand():
    balanced, uneven = solved(), solved(expert_imbalance=1.5)
    # Dense: F 1, B 2. Experts: F 2, B 4. Per microbatch four all-to-alls of 0.5 s, and counts of 0.032 s.
    least, more = balanced.prediction.stages[0], uneven.prediction.stages[0]
    assert least.forward_time == pytest.approx(1 + 2 + 2 * 0.5 + 0.032)
    assert least.backward_time == pytest.approx(2 + 4 + 2 * 0.5)
    # At 1.5: F 2.5 and B 4.875 of the experts, and all-to-alls of 0.75 s.
    assert more.forward_time == pytest.approx(1 + 2.5 + 2 * 0.75 + 0.032)
    assert more.backward_time == pytest.approx(2 + 4.875 + 2 * 0.75)
    # One microbatch in flight has 300 more bytes of the experts' stash.
    assert more.memory.stash - least.memory.stash == 300


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (1.5, "an imbalance of 1.5"),
        ("measured", "the profile's measured imbalance"),
        ((LOAD,), "a run's measured imbalance, 1.5 to 1.5"),
    ],
)
def test_a_plan_says_what_it_assumes_and_is_verified_with_it(tmp_path: Path, asked: Any, said: str):
    plan = solved(expert_imbalance=asked)
    save_plan(plan, tmp_path / "plan.json")
    again = load_plan(tmp_path / "plan.json")
    assert again == plan and all(check.passed for check in verify(again, [GIVEN]))
    assert isinstance(plan.demands.group, GroupDemand) and plan.demands.group.imbalance == asked
    assert f"expert ranks: {said} is assumed" in figures(plan)
    assert f"expert ranks with {said}" in plan.certificate.assumes
    assert plan_summary(plan, "plan.json").expert_imbalance == asked
    assert solve_with_options(GIVEN, plan.cluster, options_of(plan)).prediction == plan.prediction
    assert plan.prediction.stages[0].forward_time > solved().prediction.stages[0].forward_time


def test_balanced_load_is_the_default_and_stands_in_no_file():
    plan = solved()
    assert isinstance(plan.demands.group, GroupDemand)
    assert plan.demands.group.imbalance is msgspec.UNSET
    assert "expert ranks: balanced load is assumed" in figures(plan)
    assert solved(expert_imbalance=1).demands == plan.demands


def test_a_changed_assumption_is_found():
    plan = solved(expert_imbalance=1.5)
    assert isinstance(plan.demands.group, GroupDemand)
    group = msgspec.structs.replace(plan.demands.group, imbalance=1.25)
    changed = msgspec.structs.replace(plan.demands, group=group)
    checks = verify(msgspec.structs.replace(plan, demands=changed), [GIVEN])
    assert not all(check.passed for check in checks)


def test_one_gpu_per_rank_has_no_uneven_loads():
    free = solved(expert="1,2", expert_imbalance=2, num_stages=2)
    assert free.group is msgspec.UNSET
    assert free.prediction.stages == solved(expert="1", num_stages=2).prediction.stages
    assert plan_summary(free, "plan.json").expert_imbalance is msgspec.UNSET


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expert_imbalance": 0.9}, "0.9: the fullest GPU has from 1 to 2 times the mean"),
        ({"expert_imbalance": 3}, "3: the fullest GPU has from 1 to 2 times the mean"),
        ({"expert_imbalance": float("nan")}, "nan: the fullest GPU has from 1 to 2"),
        ({"expert_imbalance": 1.5, "expert": "1"}, "ask for some with --expert auto"),
        ({"expert_imbalance": "much"}, "'much': write a number from 1 on, measured, or the file"),
        ({"expert_imbalance": ()}, "the run exchanged no entries of experts"),
        (
            {"expert_imbalance": (msgspec.structs.replace(LOAD, layer="other"),)},
            "the run measured no imbalance of layer 'experts' for expert degree 2",
        ),
        (
            {"expert_imbalance": (msgspec.structs.replace(LOAD, largest=1.2),)},
            "an imbalance of 1.5, at most 1.2",
        ),
    ],
)
def test_impossible_loads_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(AutopartError, match=message):
        solved(**options)


def test_a_plan_for_megatron_runs_all_to_alls_beneath_the_other_microbatch(tmp_path: Path):
    variant = GIVEN.variants[0]
    graph = msgspec.structs.replace(
        variant.graph,
        layers=tuple(
            msgspec.structs.replace(one, pair_time=3.0 if one.name == "dense" else 6.0)
            for one in variant.graph.layers
        ),
    )
    assert variant.loaded is not msgspec.UNSET
    loaded = tuple(msgspec.structs.replace(one, pair_time=8.75) for one in variant.loaded.layers)
    variant = msgspec.structs.replace(
        variant,
        graph=graph,
        loaded=msgspec.structs.replace(variant.loaded, layers=loaded),
    )
    timed = msgspec.structs.replace(GIVEN, graph=graph, variants=(variant,))
    words: dict[str, Any] = {"schedule": "paired-1f1b", "num_stages": 1, "num_microbatches": 8}
    hidden = solved(timed, sync="megatron", **words)
    in_series = solved(timed, sync="end", **words)
    # Of 2 s of all-to-alls in a pair of F and B all run beneath compute.
    assert hidden.prediction.stages[0].pair_saving == pytest.approx(2.0)
    assert in_series.prediction.stages[0].pair_saving == pytest.approx(0.0)
    # All but the first forward and the last backward are in pairs.
    saved = in_series.prediction.step_time - hidden.prediction.step_time
    assert saved == pytest.approx(7 * 2.0)
    assert all(check.passed for check in verify(hidden, [timed]))
