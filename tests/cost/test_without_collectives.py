"""Stages without their group's collectives, against plans whose profile has none."""

import msgspec
import pytest

from autopart.certificate.plan_problem import PlanProblem
from autopart.certificate.prediction import predict_again
from autopart.cost.without_collectives import without_collectives
from autopart.records.cluster import Link
from autopart.records.group_choice import variant_of
from autopart.records.layer_graph import Recompute
from autopart.records.plan import Plan
from autopart.records.prediction import StagePrediction
from autopart.records.profile import Profile, profile_hash
from autopart.search.planner import solve
from tests.support.samples import sample_cluster, sample_profile
from tests.support.tensor_profiles import with_degrees

replace = msgspec.structs.replace


def solved(profile: Profile, **asked: object) -> Plan:
    # A gather of 1 MB takes 0.5 ms on two ranks, and W of half of an embedding 0.25 ms.
    on = replace(sample_cluster(gpus_per_node=4), intra_node=Link(bandwidth=1e9))
    words = {"tensor": 2, "sequence_parallel": "on", "num_stages": 2, "num_replicas": 1, **asked}
    return solve(profile, on, num_microbatches=4, **words)  # type: ignore[arg-type]


def stripped(plan: Plan, profile: Profile) -> tuple[StagePrediction, ...]:
    """The plan's stages without the collectives that its profile lists."""
    variant = variant_of(profile, plan.group)
    assert variant is not None
    return without_collectives(plan, variant.collectives)


def predicted_without(plan: Plan, profile: Profile) -> tuple[StagePrediction, ...]:
    """The prediction of the plan's stages from a profile that lists no collectives."""
    variants = tuple(replace(one, collectives=()) for one in profile.variants)
    silent = replace(profile, variants=variants)
    sizes = tuple(replace(size, profile_hash=profile_hash(silent)) for size in plan.sizes)
    return predict_again(PlanProblem(replace(plan, sizes=sizes), [silent])).stages


@pytest.fixture(scope="module")
def profile() -> Profile:
    sample = sample_profile()
    again = Recompute(extra_time=2e-3, stash_bytes=1 << 20)
    layers = tuple(
        replace(one, recompute=again, selective=again) if one.kind == "Block" else one
        for one in sample.graph.layers
    )
    sample = replace(sample, graph=replace(sample.graph, layers=layers))
    return with_degrees(sample, 2, whole=10**6)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"recompute": "always"},
        {"recompute_layers": ["h.0"], "selective_layers": ["h.1", "h.2"]},
        {"schedule": "zb-h1"},
        {"sequence_parallel": "off", "num_replicas": 2, "num_stages": 1, "zero1": True},
        {"sync": "megatron"},
        {"sync": "megatron", "schedule": "zb-h1"},
    ],
)
def test_stages_without_collectives_are_those_of_a_profile_without_them(
    profile: Profile, asked: dict[str, object]
):
    plan = solved(profile, **asked)
    found, expected = stripped(plan, profile), predicted_without(plan, profile)
    assert plan.prediction.stages != expected
    for one, other in zip(found, expected, strict=True):
        assert seconds(one) == pytest.approx(seconds(other), rel=1e-9, abs=1e-12)


def seconds(stage: StagePrediction) -> dict[str, float]:
    """The stage's seconds by name; it lends no stash."""
    fields = msgspec.structs.asdict(stage).items()
    return {name: time for name, time in fields if "time" in name and name != "lend_time"}


@pytest.mark.parametrize("options", [{}, {"sync": "fsdp2"}, {"recompute": "always"}], ids=str)
@pytest.mark.parametrize(
    ("shard", "overlaps"), [("zero2", True), ("zero3", True), ("zero3", False)]
)
def test_messages_of_sharded_state_go_too(options: dict[str, str], shard: str, *, overlaps: bool):
    """Against the prediction where the links of a node take no time."""
    sample = sample_profile()
    on = replace(
        sample_cluster(gpus_per_node=4), intra_node=Link(bandwidth=1e9), sends_overlap=overlaps
    )
    words = {"shard": shard, "shard_degree": 2, "num_stages": 1, "num_replicas": 1, **options}
    plan = solve(sample, on, num_microbatches=4, **words)  # type: ignore[arg-type]
    at_once = replace(on, intra_node=Link(bandwidth=1e30, latency=0.0))
    silent = predict_again(PlanProblem(replace(plan, cluster=at_once), [sample]))
    found = without_collectives(plan, ())
    assert found != plan.prediction.stages
    for one, expected in zip(found, silent.stages, strict=True):
        assert one.state is msgspec.UNSET
        for name in ("forward", "backward", "weight_grad", "split", "update", "busy"):
            field = f"{name}_time"
            assert getattr(one, field) == pytest.approx(getattr(expected, field), abs=1e-12), field
