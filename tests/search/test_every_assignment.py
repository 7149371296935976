"""Plans whose stages lie on the best nodes, and bounds that hold for every assignment."""

import msgspec
import pytest

from autopart import solve, verify
from autopart.certificate.certificate import certificate
from autopart.certificate.plan_problem import PlanProblem, problem_of
from autopart.certificate.prediction import predict_again
from autopart.records.cluster import Link, cluster_of, load_cluster
from autopart.records.plan import load_plan
from autopart.records.profile import load_profile
from tests.support.problems import chain_graph, cluster, layer, profile, value
from tests.support.shared_data import CASES, needs_cases


def test_nodes_change_at_the_cut_with_the_smaller_send():
    # The first cut sends 1000 bytes, the second one 10.
    graph = chain_graph(layer("a"), layer("b"), layer("c"))
    values = (value("a", "b", bytes=1000), value("b", "c", bytes=10))
    given = profile(type(graph)(layers=graph.layers, values=values))
    machine = cluster(
        2,
        2,
        intra_node=Link(bandwidth=1000.0),
        inter_node=Link(bandwidth=100.0),
        sends_overlap=True,
    )
    plan = solve(given, machine, num_microbatches=4, num_stages=3, num_replicas=1)
    first, second, third = (stage.ranks[0] // 2 for stage in plan.stages)
    assert first == second != third
    assert plan.certificate.gap == pytest.approx(0.0, abs=1e-9)
    assert all(check.passed for check in verify(plan, given))


def test_gpus_that_no_microbatch_can_employ_stay_idle():
    # Two layers and one microbatch employ two of eight GPUs.
    given = profile(chain_graph(layer("a"), layer("b")))
    plan = solve(given, cluster(1, 8), num_microbatches=1)
    assert {rank for stage in plan.stages for rank in stage.ranks} <= set(range(8))
    assert plan.certificate.gap == pytest.approx(0.0, abs=1e-9)
    assert all(check.passed for check in verify(plan, given))


@needs_cases
def test_three_stages_on_two_nodes_take_the_better_ranks():
    given = load_profile(CASES / "h1.profile.json")
    machine = load_cluster(CASES / "h1.cluster.json")
    plan = solve(given, machine, num_microbatches=4, num_stages=3, num_replicas=1)
    assert plan.prediction.step_time == pytest.approx(18.202)
    assert plan.certificate.gap == pytest.approx(0.0, abs=1e-9)


@pytest.mark.slow
@needs_cases
def test_stages_that_share_a_parameter_share_a_node_where_that_is_faster():
    given = load_profile(CASES / "enc.profile.json")
    machine = cluster_of("h100-sxm", 16, nodes=2)
    plan = solve(given, machine, num_stages=3, num_replicas=4, global_batch=16)
    assert plan.prediction.step_time < 12.45e-3
    assert plan.certificate.gap == pytest.approx(0.0, abs=1e-9)
    assert all(check.passed for check in verify(plan, given))


@needs_cases
@pytest.mark.parametrize("name", ["h1", "enc_default"])
def test_no_certificate_over_two_assignments_passes_any_more(name: str):
    given = load_profile(CASES / f"{name.split('_')[0]}.profile.json")
    plan = load_plan(CASES / f"{name}.plan.json")
    # The prediction and the bound in today's words: only the bound itself is false.
    asked = problem_of(plan, given.graph)
    predicted = predict_again(PlanProblem(plan, [given]))
    # A tied parameter of `enc` counted twice in the plan's days.
    assert predicted.step_time == pytest.approx(plan.prediction.step_time, rel=0.01)
    claimed = certificate(asked, predicted.step_time, plan.sizes, [asked])
    told = msgspec.structs.replace(plan, prediction=predicted, certificate=claimed)
    last = verify(told, given)[-1]
    assert last.name == "bound" and not last.passed
    assert "not proven" in last.detail or "lies above the plan's own" in last.detail


@needs_cases
@pytest.mark.parametrize("gpus", ["4", "8"])
def test_more_gpus_than_a_microbatch_size_can_employ_are_no_worse(gpus: str):
    sizes = [load_profile(CASES / f"h4b_mb{size}.json") for size in (1, 4)]
    machine = load_cluster(CASES / f"h4b_{gpus}gpus.cluster.json")
    plan = solve(sizes, machine, global_batch=8)
    assert plan.prediction.step_time < 8.02
    assert all(check.passed for check in verify(plan, sizes))
