"""A user's own stages as a plan: its price, and the bound of the whole search."""

import random
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from autopart import solve, verify
from autopart.errors import InfeasibleError, UsageError
from autopart.records.cluster import Cluster, cluster_of
from autopart.records.plan import Plan
from autopart.records.profile import Profile, load_profile
from autopart.search import given_stages
from autopart.search.given_stages import plan_of_stages
from autopart.search.options import SolveOptions
from autopart.search.plan_comparison import moved_layers
from autopart.search.planner import solve_with_options

PROFILES = Path(__file__).parent.parent / "golden" / "profiles"


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile(PROFILES / "llama-8b.json")


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return cluster_of("h100-sxm", 4)


OPTIONS = SolveOptions(global_batch=16, optimizer="sgd")


def in_equal_parts(profile: Profile, count: int) -> list[tuple[str, ...]]:
    names = [layer.name for layer in profile.graph.layers]
    size = -(-len(names) // count)
    return [tuple(names[at * size : (at + 1) * size]) for at in range(count)]


def proven(plan: Plan, profile: Profile) -> bool:
    return all(check.passed for check in verify(plan, profile))


def test_given_stages_keep_the_bound_of_the_whole_search(
    profile: Profile, cluster: Cluster
) -> None:
    stages = in_equal_parts(profile, 4)
    given = plan_of_stages([profile], cluster, OPTIONS, stages)
    assert [stage.layers for stage in given.plan.stages] == stages
    assert given.plan.certificate.lower_bound == given.best.certificate.lower_bound
    step = given.plan.prediction.step_time
    assert given.plan.certificate.gap == pytest.approx(
        step / given.best.certificate.lower_bound - 1
    )
    assert step >= given.same_shape.prediction.step_time >= given.best.prediction.step_time
    assert given.plan.demands == given.best.demands
    assert proven(given.plan, profile)


def test_the_best_plan_given_again_has_the_same_step(profile: Profile, cluster: Cluster) -> None:
    best = solve(profile, cluster, global_batch=16, optimizer="sgd", num_stages=4)
    given = plan_of_stages([profile], cluster, OPTIONS, [stage.layers for stage in best.stages])
    assert given.plan.prediction.step_time == pytest.approx(given.same_shape.prediction.step_time)
    assert given.moved == ()


@pytest.mark.slow
def test_a_search_that_ran_out_of_time_leaves_the_given_plan_the_best(
    profile: Profile, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    equal = plan_of_stages([profile], cluster, OPTIONS, in_equal_parts(profile, 4))
    best, slow = equal.same_shape, equal.plan
    real = given_stages.solve_with_options

    def cut_short(profiles: list[Profile], on: Cluster, options: SolveOptions) -> Plan:
        return real(profiles, on, options) if options.pins else slow

    monkeypatch.setattr(given_stages, "solve_with_options", cut_short)
    given = plan_of_stages([profile], cluster, OPTIONS, [one.layers for one in best.stages])
    step = given.plan.prediction.step_time
    assert step == given.best.prediction.step_time < slow.prediction.step_time
    assert given.best.certificate.lower_bound == slow.certificate.lower_bound
    assert given.moved == () and proven(given.best, profile)


def test_random_cuts_are_proven_and_never_beat_the_best(profile: Profile, cluster: Cluster) -> None:
    names = [layer.name for layer in profile.graph.layers]
    for seed in range(6):
        draw = random.Random(seed)
        at = sorted(draw.sample(range(1, len(names)), 3))
        stages = [tuple(names[a:b]) for a, b in zip([0, *at], [*at, len(names)], strict=True)]
        try:
            given = plan_of_stages([profile], cluster, OPTIONS, stages)
        except InfeasibleError as error:
            assert "the given stages do not fit" in str(error)
            continue
        assert given.plan.prediction.step_time >= given.best.certificate.lower_bound
        assert len(given.moved) == sum(
            layer not in given.same_shape.stages[at].layers
            for at, stage in enumerate(given.plan.stages)
            for layer in stage.layers
        )
        assert proven(given.plan, profile)


@pytest.mark.usefixtures("processor_clock")
def test_several_stages_per_rank_are_interleaved(profile: Profile, cluster: Cluster) -> None:
    options = SolveOptions(
        global_batch=16, optimizer="sgd", stages_per_rank=2, recompute="selective", time_limit=20
    )
    given = plan_of_stages([profile], cluster, options, in_equal_parts(profile, 8))
    assert given.plan.schedule == "interleaved-1f1b"
    assert [stage.ranks for stage in given.plan.stages] == [(0,), (1,), (2,), (3,)] * 2
    assert proven(given.plan, profile)


def test_stages_that_share_ranks_and_do_not_fit_are_refused_without_a_search(
    profile: Profile, cluster: Cluster
) -> None:
    stages = in_equal_parts(profile, 8)
    pins = {name: at for at, names in enumerate(stages) for name in names}

    def solved(memory: int, time_limit: float) -> Plan:
        options = replace(
            OPTIONS,
            schedule="interleaved-1f1b",
            num_stages=8,
            stages_per_rank=2,
            pins=pins,
            time_limit=time_limit,
        )
        small = msgspec.structs.replace(cluster, memory_bytes=memory)
        return solve_with_options(profile, small, options)

    with pytest.raises(InfeasibleError, match="would do") as refused:
        solved(32 << 30, time_limit=0.0)
    least = refused.value.least_bytes
    assert least is not None
    assert max(solved(least, 30.0).prediction.rank_peak_bytes) == least
    with pytest.raises(InfeasibleError):
        solved(least - 1, time_limit=0.0)


def test_moved_layers_are_those_on_other_stages(profile: Profile, cluster: Cluster) -> None:
    best = solve(profile, cluster, global_batch=16, optimizer="sgd", num_stages=4)
    stages = [list(stage.layers) for stage in best.stages]
    stages[1].append(stages[2].pop(0))
    given = plan_of_stages([profile], cluster, OPTIONS, stages)
    assert moved_layers(given.plan, best) == (stages[1][-1],)


@pytest.mark.parametrize(
    ("count", "options", "said"),
    [
        (3, {}, "3 stages takes 3 GPUs, which does not divide 4 GPUs"),
        (4, {"stages_per_rank": 3}, "3 stages per rank cannot share the layout's 4 stages"),
        (4, {"tensor": "auto"}, "one tensor degree"),
        (4, {"tensor": 0}, "does not divide"),
    ],
)
def test_ranks_that_do_not_come_out_even_are_refused(
    profile: Profile, cluster: Cluster, count: int, options: dict[str, int | str], said: str
) -> None:
    asked = SolveOptions(global_batch=16, **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match=said):
        plan_of_stages([profile], cluster, asked, in_equal_parts(profile, count))
