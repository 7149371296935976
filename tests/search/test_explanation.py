"""What explains a plan: every figure equals solving again by hand."""

import contextlib
from pathlib import Path

import msgspec
import pytest

from autopart import solve
from autopart.errors import InfeasibleError
from autopart.records.cluster import Cluster, cluster_of
from autopart.records.plan import Plan
from autopart.records.profile import Profile, load_profile
from autopart.search.explanation import Explanation, explain_plan
from autopart.search.plan_comparison import sample_seconds
from autopart.search.what_if import parse_scenario

PROFILE = Path(__file__).parent.parent / "golden" / "profiles" / "llama-8b.json"
ASKED = {"global_batch": 16, "optimizer": "sgd", "num_stages": 4}


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile(PROFILE)


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return cluster_of("h100-sxm", 4, 2)


@pytest.fixture(scope="module")
def plan(profile: Profile, cluster: Cluster) -> Plan:
    return solve(profile, cluster, **ASKED)  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def found(plan: Plan, profile: Profile) -> Explanation:
    return explain_plan(plan, [profile], time_limit=600)


def test_every_usual_change_equals_solving_again_by_hand(
    found: Explanation, profile: Profile, cluster: Cluster
) -> None:
    by_hand = {
        "": (cluster, {}),
        "global-batch=18": (cluster, {"global_batch": 18}),
        "recompute=auto": (cluster, {"recompute": "auto"}),
        "memory=+1GiB": (_with(cluster, memory_bytes=cluster.memory_bytes + (1 << 30)), {}),
        "intra-bandwidth=+10%": (_faster(cluster, "intra_node"), {}),
        "inter-bandwidth=+10%": (_faster(cluster, "inter_node"), {}),
        "nodes=+1": (_with(cluster, num_nodes=3), {}),
    }
    told = {
        ",".join(f"{change.field}={change.value}" for change in one.scenario): one.plan
        for one in found.outcomes
    }
    assert list(told) == list(by_hand)
    for name, (on, more) in by_hand.items():
        ours = told[name]
        assert ours is not None
        again = solve(profile, on, **(ASKED | more))  # pyright: ignore[reportArgumentType]
        assert ours.prediction.step_time == again.prediction.step_time, name
    assert found.left_out == 0


def test_the_best_move_equals_trying_every_move_by_hand(
    found: Explanation, plan: Plan, profile: Profile, cluster: Cluster
) -> None:
    names = [layer.name for layer in profile.graph.layers]
    ends = [names.index(stage.layers[-1]) + 1 for stage in plan.stages][:-1]
    steps: list[float] = []
    for at in range(3):
        for shift in (-1, 1):
            moved = [end + shift * (place == at) for place, end in enumerate(ends)]
            cuts = [0, *moved, len(names)]
            pins = {n: s for s in range(4) for n in names[cuts[s] : cuts[s + 1]]}
            options = ASKED | {"pins": pins, "schedule": plan.schedule}
            with contextlib.suppress(InfeasibleError):
                again = solve(profile, cluster, **options)  # pyright: ignore[reportArgumentType]
                steps.append(again.prediction.step_time)
    assert len(steps) > 2
    assert found.move is not None
    assert found.move.plan.prediction.step_time == min(steps)
    assert found.move.layer in found.move.plan.stages[found.move.stage].layers


def test_idle_time_and_path_are_those_of_the_step(found: Explanation, plan: Plan) -> None:
    seconds = plan.prediction.step_time
    assert sum(piece.end - piece.start for piece in found.path) == pytest.approx(seconds)
    assert sum(found.idle.values()) == pytest.approx(plan.prediction.bubble * 4 * seconds)


def test_asked_changes_replace_the_usual_ones(plan: Plan, profile: Profile) -> None:
    asked = [parse_scenario("memory=1KiB"), parse_scenario("global-batch=2x,nodes=2x")]
    found = explain_plan(plan, [profile], asked, time_limit=600)
    assert found.move is None
    assert found.outcomes[0].plan is None and "nothing fits" in found.outcomes[0].reason
    faster = found.outcomes[1].plan
    assert faster is not None
    assert sample_seconds(faster) < sample_seconds(plan)


def test_without_time_all_changes_are_left_out_and_counted(plan: Plan, profile: Profile) -> None:
    found = explain_plan(plan, [profile], time_limit=0.0)
    assert (found.move, found.outcomes, found.left_out) == (None, (), 7)


def _with(cluster: Cluster, **fields: int) -> Cluster:
    return msgspec.structs.replace(cluster, **fields)


def _faster(cluster: Cluster, link: str) -> Cluster:
    old = getattr(cluster, link)
    return msgspec.structs.replace(
        cluster, **{link: msgspec.structs.replace(old, bandwidth=1.1 * old.bandwidth)}
    )
