import json
import random

import msgspec
import numpy as np
import pytest

from autopart.bounds.classic_schedules import stage_bounds
from autopart.bounds.open_replicas import lower_bound
from autopart.bounds.uneven_replicas import ReplicaBounds
from autopart.certificate.verify import verify
from autopart.cost.cuts import all_cuts
from autopart.errors import AutopartError, InfeasibleError
from autopart.records.cluster import Link
from autopart.records.files import encode
from autopart.records.plan import Plan, check_plan
from autopart.search.planner import solve
from tests.bounds.test_classic_schedules import largest
from tests.support.oracle import best_step_time, every_layout, layout_stages, partitions, step_time
from tests.support.problems import chain_graph, cluster, layer, profile, random_problem
from tests.support.seeds import seeds


def per_stage(asked, **demands: object):
    """The same problem with a separate number of replicas for each stage."""
    own = msgspec.structs.replace(asked.demands, replicas_per_stage=True, **demands)
    return msgspec.structs.replace(asked, demands=own)


@pytest.mark.parametrize("seed", seeds(6, 120))
def test_a_plan_is_proven_fastest_over_all_replicas_per_stage(seed: int):
    rng = random.Random(seed)
    asked = per_stage(random_problem(rng, branching=rng.random() < 0.3, tight=rng.random() < 0.5))
    asked = msgspec.structs.replace(asked, num_microbatches=rng.choice([2, 3, 5, 8]))
    stages = rng.choice([None, None, 2])
    num_layers = len(asked.graph.layers)
    if num_layers * asked.num_microbatches < 4 or (stages and num_layers < 2):
        return
    asked = per_stage(asked, num_stages=stages)
    best, given = best_step_time(asked), profile(asked.graph)
    try:
        plan = solve(
            given,
            asked.cluster,
            num_microbatches=asked.num_microbatches,
            num_stages=stages,
            replicas_per_stage=True,
        )
    except InfeasibleError:
        assert best is None
        return
    check_plan(plan)
    assert plan.prediction.step_time == pytest.approx(best, rel=1e-9)
    assert plan.certificate.gap == pytest.approx(0.0, abs=1e-9)
    checks = verify(plan, given)
    assert all(check.passed for check in checks), checks[-1]


@pytest.mark.parametrize("seed", seeds(10, 40))
def test_no_plan_is_faster_than_the_bounds_of_its_stages_and_replicas(seed: int):
    rng = random.Random(seed)
    asked = per_stage(random_problem(rng, branching=seed % 3 == 0, tight=seed % 2 == 0))
    asked = msgspec.structs.replace(asked, num_microbatches=rng.choice([3, 5, 8]))
    cuts = all_cuts(asked.graph)
    free = ReplicaBounds(asked, cuts)
    fastest = best_step_time(asked)
    assert fastest is None or lower_bound(free, 0.0, fastest) <= fastest * (1 + 1e-9)
    for layout in every_layout(asked):
        counts = [len(ranks) for ranks in layout.stage_ranks]
        alone = [
            free.bound(layout.schedule, count, 1.0, sum(counts[at + 1 :]))
            for at, count in enumerate(counts)
        ]
        bounds = stage_bounds(asked, layout, cuts)
        for partition in partitions(asked, layout_stages(layout)):
            time = step_time(asked, layout, partition)
            assert time is None or largest(cuts, bounds, partition) <= time * (1 + 1e-9)
            assert time is None or largest(cuts, alone, partition) <= time * (1 + 1e-9)
            assert time is not None or np.isinf(largest(cuts, bounds, partition))


def test_a_heavy_head_gets_more_ranks_and_is_faster_than_with_equal_replicas():
    body = [layer(f"l{i}", param_bytes=100) for i in range(2)]
    graph = chain_graph(*body, layer("head", forward_time=16.0, param_bytes=100), num_bytes=1)
    tight = cluster(1, 4, memory_bytes=250)
    own = solve(profile(graph), tight, num_microbatches=12, replicas_per_stage=True)
    equal = solve(profile(graph), tight, num_microbatches=12)
    assert own.prediction.step_time < 0.8 * equal.prediction.step_time
    assert [len(stage.ranks) for stage in own.stages] == [1, 3]
    assert "replicas of their own for every stage" in own.certificate.assumes


@pytest.mark.slow
def test_the_named_least_memory_suffices_and_one_byte_less_does_not():
    for seed in range(15):
        asked = random_problem(random.Random(seed), branching=False, tight=True)
        given = profile(asked.graph)
        cruel = msgspec.structs.replace(asked.cluster, memory_bytes=10)
        if len(asked.graph.layers) == 1:
            continue
        with pytest.raises(InfeasibleError, match="the least that would do is") as caught:
            solve(given, cruel, num_microbatches=4, replicas_per_stage=True)
        least = int(str(caught.value).split("(")[1].split(" bytes")[0])
        enough = msgspec.structs.replace(cruel, memory_bytes=least)
        solve(given, enough, num_microbatches=4, replicas_per_stage=True)
        less = msgspec.structs.replace(cruel, memory_bytes=least - 1)
        with pytest.raises(InfeasibleError):
            solve(given, less, num_microbatches=4, replicas_per_stage=True)


def unequal_plan() -> Plan:
    """A plan on two nodes whose stages have different numbers of replicas."""
    sizes = {"param_bytes": 40, "grad_bytes": 40, "num_trainable": 10}
    graph = chain_graph(*(layer(f"l{i}", stash_bytes=40 + i, update_time=0.01, **sizes) for i in range(2)), layer("head", forward_time=6.5, update_time=0.02, **sizes), num_bytes=1)  # fmt: skip
    machine = cluster(2, 2, inter_node=Link(bandwidth=1e3, latency=1e-4), memory_bytes=430)
    return solve(profile(graph), machine, num_microbatches=7, replicas_per_stage=True)


def test_an_unequal_plan_with_one_altered_number_is_refused():
    plan = unequal_plan()
    given = profile(chain_graph(*(layer(f"l{i}", stash_bytes=40 + i, update_time=0.01, param_bytes=40, grad_bytes=40, num_trainable=10) for i in range(2)), layer("head", forward_time=6.5, update_time=0.02, param_bytes=40, grad_bytes=40, num_trainable=10), num_bytes=1))  # fmt: skip
    assert len({len(stage.ranks) for stage in plan.stages}) > 1
    assert all(check.passed for check in verify(plan, given))
    altered = json.loads(encode(plan))
    for place in altered["prediction"]["stages"]:
        place["forward_time"] *= 1.001
        assert not all(c.passed for c in verify(msgspec.convert(altered, Plan), given))
        place["forward_time"] /= 1.001
    bound = plan.certificate.lower_bound
    for factor in (1.001, 0.999):
        raised = msgspec.structs.replace(
            plan.certificate,
            lower_bound=bound * factor,
            gap=max(0.0, plan.prediction.step_time / (bound * factor) - 1),
        )
        checks = verify(msgspec.structs.replace(plan, certificate=raised), given)
        assert not checks[-1].passed
    for at, stage in enumerate(plan.stages):
        if len(stage.ranks) > 1:
            fewer = msgspec.structs.replace(stage, ranks=stage.ranks[:-1])
            stages = (*plan.stages[:at], fewer, *plan.stages[at + 1 :])
            assert not all(
                c.passed for c in verify(msgspec.structs.replace(plan, stages=stages), given)
            )
    equal = msgspec.structs.replace(plan.demands, replicas_per_stage=False)
    check = verify(msgspec.structs.replace(plan, demands=equal), given)[-1]
    assert check.name == "demands" and "all must have as many" in check.detail


def test_two_demands_for_replicas_are_refused():
    with pytest.raises(AutopartError, match="ask for one of them"):
        solve(profile(chain_graph(layer("a"))), cluster(), num_replicas=2, replicas_per_stage=True)


@pytest.mark.slow
def test_a_graph_with_too_many_cuts_has_a_valid_gap(monkeypatch):
    monkeypatch.setattr("autopart.cost.cuts.downsets_of", lambda n, edges, most: None)
    for seed in range(6):
        asked = per_stage(random_problem(random.Random(seed), branching=True, tight=False))
        plan = solve(
            profile(asked.graph), asked.cluster, num_microbatches=4, replicas_per_stage=True
        )
        best = best_step_time(msgspec.structs.replace(asked, num_microbatches=4))
        assert best is not None and plan.certificate.lower_bound <= best * (1 + 1e-9)
        assert all(check.passed for check in verify(plan, profile(asked.graph)))
