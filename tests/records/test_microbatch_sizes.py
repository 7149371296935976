"""Microbatch size as a decision: scaling, several profiles, one certificate over all sizes."""

import copy
import json
import random

import msgspec
import pytest

from autopart.certificate.verify import verify
from autopart.errors import AutopartError, InfeasibleError, ProfileError
from autopart.records.files import encode
from autopart.records.layer_graph import Recompute
from autopart.records.microbatch_sizes import at_sizes, scale_profile
from autopart.records.plan import Plan
from autopart.records.profile import Profile
from autopart.search.planner import solve
from tests.support.problems import chain_graph, cluster, layer, profile, random_problem, value
from tests.support.seeds import seeds

ROW = profile(
    chain_graph(
        *(
            layer(f"l{i}", stash_bytes=30 + i, workspace_bytes=9, param_bytes=8, update_time=0.5)
            for i in range(5)
        )
    )
)


def measured(base: Profile, size: int, rng: random.Random) -> Profile:
    """The profile as a measurement at `size` may find it: not quite proportional."""
    scaled = scale_profile(base, size)
    layers = tuple(
        msgspec.structs.replace(la, forward_time=la.forward_time * rng.uniform(0.6, 1.2))
        for la in scaled.graph.layers
    )
    graph = msgspec.structs.replace(scaled.graph, layers=layers)
    source = msgspec.structs.replace(base.source, graph_hash=str(size) * 16)
    return msgspec.structs.replace(scaled, graph=graph, source=source, warnings=())


def passed(plan: Plan, *profiles: Profile) -> bool:
    return all(check.passed for check in verify(plan, profiles))


def test_scaling_is_proportional_but_for_what_does_not_depend_on_samples():
    again = Recompute(extra_time=1.0, stash_bytes=5)
    one = layer(
        "a", stash_bytes=3, workspace_bytes=5, update_time=0.25, param_bytes=8, grad_bytes=8
    )
    base = profile(
        chain_graph(msgspec.structs.replace(one, recompute=again), layer("b"), num_bytes=7)
    )
    base = msgspec.structs.replace(base, microbatch_size=2)
    scaled = scale_profile(base, 3)
    first = scaled.graph.layers[0]
    assert (first.forward_time, first.input_grad_time, first.weight_grad_time) == (1.5, 1.5, 1.5)
    assert (first.stash_bytes, first.workspace_bytes) == (5, 8)  # rounded up
    assert (first.update_time, first.param_bytes, first.grad_bytes) == (0.25, 8, 8)
    assert first.recompute == Recompute(extra_time=1.5, stash_bytes=8)
    assert scaled.graph.values[0].bytes == 11
    assert (
        scaled.microbatch_size == 3 and "scaled from microbatches of 2 to 3" in scaled.warnings[0]
    )
    assert scale_profile(base, 2) is base


def test_a_size_without_a_profile_is_scaled_from_the_nearest():
    rng = random.Random(0)
    two, eight = measured(ROW, 2, rng), measured(ROW, 8, rng)
    sized = at_sizes([eight, two], [1, 2, 4, 6, 16])
    assert [one.profiled_size for one in sized] == [2, 2, 2, 8, 8]
    assert [one.profile.microbatch_size for one in sized] == [1, 2, 4, 6, 16]
    assert [one.profile for one in at_sizes([eight, two])] == [two, eight]


@pytest.mark.parametrize("objective", ["step", "bottleneck"])
@pytest.mark.parametrize("seed", seeds(2, 40))
def test_all_sizes_at_once_are_as_good_as_the_best_of_each_alone(seed: int, objective: str):
    rng = random.Random(seed)
    asked = random_problem(rng, branching=rng.random() < 0.4, tight=rng.random() < 0.5)
    base = profile(asked.graph)
    profiles = [base, measured(base, 2, rng)]
    sizes = [1, 2, 3]
    values: list[float] = []
    plans: list[Plan] = []
    for one in at_sizes(profiles, sizes):
        try:
            plan = solve(one.profile, asked.cluster, global_batch=12, objective=objective)
        except InfeasibleError:
            continue
        plans.append(plan)
        values.append(minimised_by(plan))
    if not plans:
        with pytest.raises(InfeasibleError):
            solve(
                profiles,
                asked.cluster,
                global_batch=12,
                microbatch_sizes=sizes,
                objective=objective,
            )
        return
    found = solve(
        profiles, asked.cluster, global_batch=12, microbatch_sizes=sizes, objective=objective
    )
    assert minimised_by(found) == pytest.approx(min(values), rel=1e-9)
    bounds = [plan.certificate.lower_bound for plan in plans]
    assert found.certificate.lower_bound == pytest.approx(min(bounds), rel=1e-9)
    assert [size.microbatch_size for size in found.sizes] == sizes
    assert [size.profiled_size for size in found.sizes] == [1, 2, 2]
    assert passed(found, *profiles), verify(found, profiles)[-1]


@pytest.mark.parametrize("seed", seeds(3, 10))
def test_sizes_and_replicas_of_their_own_go_together(seed: int):
    rng = random.Random(seed)
    asked = random_problem(rng, branching=False, tight=rng.random() < 0.5)
    profiles = [profile(asked.graph), measured(profile(asked.graph), 2, rng)]
    values: list[float] = []
    for one in profiles:
        try:
            alone = solve(one, asked.cluster, global_batch=8, replicas_per_stage=True)
        except InfeasibleError:
            continue
        values.append(alone.prediction.step_time)
    if not values:
        with pytest.raises(InfeasibleError):
            solve(profiles, asked.cluster, global_batch=8, replicas_per_stage=True)
        return
    found = solve(profiles, asked.cluster, global_batch=8, replicas_per_stage=True)
    assert found.prediction.step_time == pytest.approx(min(values), rel=1e-9)
    assert found.certificate.lower_bound > 0
    assert passed(found, *profiles), verify(found, profiles)[-1]


def minimised_by(plan: Plan) -> float:
    """The objective of a plan, from its own figures."""
    if plan.objective == "step":
        return plan.prediction.step_time
    own = [plan.num_microbatches / len(stage.ranks) for stage in plan.stages]
    return max(m * s.busy_time for m, s in zip(own, plan.prediction.stages, strict=True))


@pytest.mark.slow
def test_a_slow_small_size_is_pruned_and_the_proof_covers_it():
    slow = msgspec.structs.replace(
        ROW,
        graph=msgspec.structs.replace(
            ROW.graph,
            layers=tuple(msgspec.structs.replace(la, forward_time=50.0) for la in ROW.graph.layers),
        ),
    )
    fast = scale_profile(ROW, 4)
    plan = solve([slow, fast], cluster(1, 4), global_batch=16)
    assert plan.microbatch_size == 4
    small, large = plan.sizes
    assert small.simulated == 0 and large.lower_bound == plan.certificate.lower_bound
    assert passed(plan, slow, fast) and passed(plan, fast, slow)


def test_the_large_size_does_not_fit_and_the_small_one_is_taken():
    rows = profile(chain_graph(*(layer(f"l{i}", stash_bytes=100) for i in range(4))))
    plan = solve(
        rows,
        cluster(1, 2, memory_bytes=700),
        global_batch=16,
        microbatch_sizes=[1, 8],
        num_stages=2,
        schedule="1f1b",
    )
    assert plan.microbatch_size == 1
    assert plan.sizes[1].lower_bound == plan.certificate.lower_bound
    assert passed(plan, rows)


@pytest.mark.slow
def test_verify_refuses_a_bound_that_another_size_breaks_and_a_missing_or_foreign_profile():
    rng = random.Random(1)
    profiles = [ROW, measured(ROW, 2, rng)]
    plan = solve(profiles, cluster(1, 4), global_batch=16)
    assert passed(plan, *profiles)
    assert "take the profile" in verify(plan, profiles[0])[-1].detail
    other = measured(ROW, 4, rng)
    assert "was not made from profile" in verify(plan, (*profiles, other))[-1].detail
    alone = solve(profiles[0], cluster(1, 4), global_batch=16)
    assert not passed(msgspec.structs.replace(plan, sizes=alone.sizes), *profiles)
    tree = copy.deepcopy(json.loads(encode(plan)))
    for at, size in enumerate(plan.sizes):
        for key, wrong in (
            ("microbatch_size", 16),
            ("profiled_size", 16),
            ("lower_bound", 1e-3),
            ("lower_bound", None),
            ("simulated", size.simulated + 1),
            ("profile_hash", "f" * 16),
        ):
            changed = copy.deepcopy(tree)
            changed["sizes"][at][key] = wrong
            assert not passed(msgspec.convert(changed, Plan), *profiles), (at, key)
    best = max(plan.sizes, key=lambda size: size.lower_bound or 0)
    assert best.lower_bound is not None
    higher = [
        msgspec.structs.replace(size, lower_bound=10 * best.lower_bound)
        if size.microbatch_size != plan.microbatch_size
        else size
        for size in plan.sizes
    ]
    assert not passed(msgspec.structs.replace(plan, sizes=tuple(higher)), *profiles)


def test_a_batch_that_no_size_or_not_every_size_divides_says_which_do():
    with pytest.raises(AutopartError, match=r"microbatches of 4 \(1, 2 do divide it\).*try 4 or 8"):
        solve(ROW, cluster(1, 2), global_batch=6, microbatch_sizes=[1, 2, 4])
    with pytest.raises(AutopartError, match="microbatches of which size"):
        solve(ROW, cluster(1, 2), num_microbatches=6, microbatch_sizes=[1, 2])
    plan = solve(ROW, cluster(1, 2), microbatch_sizes=[2, 3])
    assert plan.num_microbatches * plan.microbatch_size == 4 * 2 * 6


@pytest.mark.parametrize("sizes", [[2, 2], [0, 1], [-3]])
def test_sizes_that_are_named_twice_or_too_small_are_refused(sizes: list[int]):
    with pytest.raises(AutopartError, match="microbatch size"):
        solve(ROW, cluster(1, 2), global_batch=12, microbatch_sizes=sizes)


def test_profiles_that_do_not_belong_together_say_what_differs():
    two = scale_profile(ROW, 2)
    device = msgspec.structs.replace(two.device, name="another")
    source = msgspec.structs.replace(two.source, model="other.py")
    renamed = chain_graph(*(layer(f"m{i}") for i in range(5)))
    skip = msgspec.structs.replace(
        two.graph, values=(*two.graph.values, value("l0", "l3", bytes=2))
    )
    for words, other in (
        ("two profiles have microbatches of 1", ROW),
        ("dtype is float32 and bfloat16", msgspec.structs.replace(two, dtype="bfloat16")),
        (
            "choice of dtypes is one for all and each tensor's own",
            msgspec.structs.replace(two, own_dtypes=True),
        ),
        ("device is test and another", msgspec.structs.replace(two, device=device)),
        ("model is test and other.py", msgspec.structs.replace(two, source=source)),
        ("method is imported and analytic", msgspec.structs.replace(two, method="analytic")),
        ("layer 'l0'", msgspec.structs.replace(two, graph=renamed)),
        ("lie between different layers", msgspec.structs.replace(two, graph=skip)),
    ):
        with pytest.raises(ProfileError, match=words):
            solve([ROW, other], cluster(1, 2), global_batch=12)
    with pytest.raises(ProfileError, match="no profile"):
        solve([], cluster(1, 2))


@pytest.mark.slow
@pytest.mark.usefixtures("processor_clock")
@pytest.mark.parametrize("objective", ["step", "bottleneck"])
def test_without_time_a_plan_comes_back_with_a_bound_that_can_be_proven(objective: str):
    rng = random.Random(3)
    profiles = [ROW, measured(ROW, 2, rng), measured(ROW, 4, rng)]
    machine = cluster(1, 4)
    best = solve(profiles, machine, global_batch=16, objective=objective)
    hasty = solve(profiles, machine, global_batch=16, objective=objective, time_limit=0.0)
    assert hasty.certificate.lower_bound <= minimised_by(best) * (1 + 1e-9)
    assert minimised_by(hasty) >= minimised_by(best) * (1 - 1e-9)
    assert passed(hasty, *profiles), verify(hasty, profiles)[-1]
