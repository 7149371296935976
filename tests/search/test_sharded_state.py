"""Plans with sharded state and context degrees, against trying everything, and what `solve` says about them."""

import itertools
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autopart.certificate.certificate import certificate
from autopart.certificate.plan_problem import PlanProblem
from autopart.certificate.verify import verify
from autopart.errors import AutopartError, ExportRefused, PlanError
from autopart.exporters.targets import export_plan
from autopart.records.cluster import GpuGroup, Link
from autopart.records.group_choice import GroupDemand
from autopart.records.group_variants import Collective, LayerCollectives
from autopart.records.plan import Plan, check_plan, load_plan, save_plan
from autopart.records.profile import Profile
from autopart.records.rank_group import Group
from autopart.report.plan_table import figures, plan_title
from autopart.search.options import SolveOptions
from autopart.search.options_of_plan import options_of
from autopart.search.planner import baselines, solve, solve_with_options
from autopart.search.target_defaults import with_target
from tests.support.exporters.language import language_plan
from tests.support.long_tests import long_tests
from tests.support.plan_kinds import ROW
from tests.support.problems import cluster
from tests.support.seeds import seeds
from tests.support.tensor_plans import in_groups
from tests.support.tensor_profiles import shard_of, with_degrees
from tests.support.witness.cases import SHARDED, draw_case
from tests.support.witness.claims import judge

LINKS = {"intra_node": Link(bandwidth=2000.0), "inter_node": Link(bandwidth=20.0)}
GIVEN = with_degrees(ROW, 2, whole=8)


def solved(given: Profile = GIVEN, nodes: int = 1, gpus: int = 4, **options: Any) -> Plan:
    words: dict[str, Any] = {"num_microbatches": 8, "shard": "zero3"}
    return solve(given, cluster(nodes, gpus, **LINKS), **(words | options))


def with_contexts(profile: Profile, *degrees: int) -> Profile:
    """The profile with context degrees, alone and beside a tensor degree of 2; parameters are whole on each GPU."""
    found = list(profile.variants)
    for degree in degrees:
        for tensor in (1, 2):
            graph = shard_of(profile.graph, degree * tensor, split=True)
            whole = zip(graph.layers, profile.graph.layers, strict=True)
            layers = tuple(
                msgspec.structs.replace(
                    layer,
                    param_bytes=-(-one.param_bytes // tensor),
                    grad_bytes=-(-one.grad_bytes // tensor),
                    num_trainable=-(-one.num_trainable // tensor),
                )
                for layer, one in whole
            )
            collectives = tuple(
                LayerCollectives(
                    layer=layer.name,
                    collectives=(
                        Collective(kind="all_gather", bytes=4, phase="forward", among="context"),
                        Collective(
                            kind="all_reduce", bytes=layer.grad_bytes, phase="step", among="context"
                        ),
                    ),
                )
                for layer in layers
            )
            variant = profile.variants[0]
            found.append(
                msgspec.structs.replace(
                    variant,
                    group=Group(tensor=tensor, context=degree),
                    graph=msgspec.structs.replace(graph, layers=layers),
                    collectives=collectives,
                )
            )
    return msgspec.structs.replace(profile, variants=tuple(found))


CONTEXTS = with_contexts(GIVEN, 2, 4)


def with_rings(profile: Profile, attention: float) -> Profile:
    """The profile with a ring beside each gather, and so many seconds of attention beneath it."""
    found = list(profile.variants)
    for variant in profile.variants:
        if variant.group.context > 1:
            own = tuple(
                LayerCollectives(
                    layer=one.layer,
                    collectives=tuple(
                        msgspec.structs.replace(
                            c, kind="ring", bytes=5 * c.bytes, compute_time=attention
                        )
                        if c.kind == "all_gather"
                        else c
                        for c in one.collectives
                    ),
                )
                for one in variant.collectives
            )
            group = msgspec.structs.replace(variant.group, exchange="ring")
            found.append(msgspec.structs.replace(variant, group=group, collectives=own))
    return msgspec.structs.replace(profile, variants=tuple(found))


def with_experts(profile: Profile) -> Profile:
    """The profile with microbatches of 4, and with each context degree as an expert degree, too, which sends tokens.

    Each stands beside context degree 2 as well.
    """
    found = list(profile.variants)
    for variant in profile.variants:
        degree = variant.group.context
        if degree > 1:
            sent = Collective(kind="all_to_all", bytes=4, phase="forward", among="expert")
            for context in {1, min(2, degree)}:
                group = msgspec.structs.replace(variant.group, context=context, expert=degree)
                own = tuple(
                    LayerCollectives(
                        layer=one.layer,
                        collectives=(sent, sent) if context == 1 else (*one.collectives, sent),
                    )
                    for one in variant.collectives
                )
                found.append(msgspec.structs.replace(variant, group=group, collectives=own))
    return msgspec.structs.replace(profile, microbatch_size=4, variants=tuple(found))


EXPERTS = with_experts(CONTEXTS)


@pytest.mark.parametrize("seed", range(12))
def test_no_claim_on_sharded_state_is_false(seed: int):
    """The witness prices each kind and degree from its own formulas, with every partition, placement and schedule."""
    assert judge(draw_case("sharded state", seed)).broken == ()


@pytest.mark.parametrize("seed", range(16))
def test_no_claim_on_groups_over_several_nodes_is_false(seed: int):
    assert judge(draw_case("groups on several nodes", seed)).broken == ()


@pytest.mark.slow
@pytest.mark.parametrize("block", seeds(0, 2))
@pytest.mark.parametrize("kind", [*long_tests(*SHARDED[:-1]), SHARDED[-1]])
def test_no_claim_on_more_sharded_state_is_false(kind: str, block: int):
    broken = [
        (seed, claim)
        for seed in range(1000 + 50 * block, 1050 + 50 * block)
        for claim in judge(draw_case(kind, seed), any_order=seed % 5 == 0).broken
    ]
    assert broken == []


def test_a_group_runs_as_many_microbatches_together_as_it_has_gpus():
    plan = solved(nodes=2, shard_degree=4)
    assert plan.group == Group(data=4, shard="zero3", reduce="microbatch")
    assert (plan.microbatch_size, plan.num_microbatches) == (4, 2)
    assert [(s.microbatch_size, s.profiled_size) for s in plan.sizes] == [(4, 1)]
    assert all(check.passed for check in verify(plan, GIVEN))


def test_a_group_may_be_whole_nodes(tmp_path: Path):
    """Context degree 4 and shard degree 2 fill four nodes of two GPUs; the expert degree 4 fills two."""
    plan = solved(CONTEXTS, nodes=4, gpus=2, context="4", shard_degree=2)
    assert plan.group == Group(context=4, data=2, shard="zero3", reduce="microbatch")
    assert [stage.ranks for stage in plan.stages] == [(0,)]
    assert "rank q is the GPUs 8 q to 8 q + 7, on 4 nodes;" in " ".join(figures(plan))
    assert "on GPUs of one node or of whole nodes" in plan.certificate.assumes
    save_plan(plan, tmp_path / "plan.json")
    again = load_plan(tmp_path / "plan.json")
    assert all(check.passed for check in verify(again, CONTEXTS))
    experts = solved(EXPERTS, nodes=4, gpus=2, expert="4", shard="none")
    assert max(rank for stage in experts.stages for rank in stage.ranks) < 2
    assert all(check.passed for check in verify(experts, EXPERTS))


def test_state_over_more_nodes_takes_less_memory():
    inside, over = (solved(nodes=2, shard_degree=d, num_stages=1) for d in (4, 8))
    assert [len(plan.stages[0].ranks) for plan in (inside, over)] == [2, 1]
    assert over.prediction.stages[0].memory.optimizer < inside.prediction.stages[0].memory.optimizer


def test_auto_searches_every_kind_and_degree_and_is_never_worse():
    plan = solved(shard="auto", tensor="auto", sequence_parallel="off", nodes=2)
    assert [(size.group, size.zero1) for size in plan.sizes] == [
        *_choices(1, (2, 4, 8)),
        *_choices(2, (2, 4)),
    ]
    assert all(check.passed for check in verify(plan, GIVEN))
    for shard in ("none", "zero1", "zero2", "zero3"):
        for tensor in (1, 2):
            one = solved(shard=shard, tensor=tensor, sequence_parallel="off", nodes=2)
            assert plan.prediction.step_time <= one.prediction.step_time * (1 + 1e-9)


def _choices(tensor: int, degrees: tuple[int, ...]) -> list[Any]:
    base = Group(tensor=tensor) if tensor > 1 else msgspec.UNSET
    kinds: list[Any] = [(base, msgspec.UNSET), (base, True)]
    for shard in ("zero2", "zero3"):
        kinds += [
            (Group(tensor=tensor, data=d, shard=shard, reduce="microbatch"), msgspec.UNSET)
            for d in degrees
        ]
    return kinds


def test_gradients_are_summed_once_per_step_as_fsdp2_does():
    often, once = solved(shard_degree=4), solved(shard_degree=4, sync="fsdp2")
    assert isinstance(once.group, Group) and once.group.reduce == "step"
    kept = [plan.prediction.stages[0].memory.gradients for plan in (often, once)]
    assert kept[1] > kept[0]
    assert all(check.passed for check in verify(once, GIVEN))


def test_each_kind_keeps_less_than_the_one_before():
    words: dict[str, Any] = {"num_stages": 1, "num_replicas": 1, "shard_degree": 4}
    plain = solved(shard="none", num_stages=1, num_replicas=4)
    second, third = (solved(shard=kind, **words) for kind in ("zero2", "zero3"))
    memory = [plan.prediction.stages[0].memory for plan in (plain, second, third)]
    assert memory[0].weights == memory[1].weights > memory[2].weights
    assert memory[0].gradients > memory[1].gradients == memory[2].gradients
    assert memory[0].optimizer > memory[1].optimizer == memory[2].optimizer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": "zero4"}, "unknown --shard 'zero4'; known: none, zero1, zero2, zero3, auto"),
        ({"shard": "zero3,"}, "unknown --shard ''; known: none, zero1, zero2, zero3, auto"),
        ({"zero1": True}, "--zero1 shares optimizer state over replicas, and --shard zero3"),
        ({"shard": "none", "shard_degree": 2}, "--shard-degree 2 needs sharded state in a group"),
        ({"shard_degree": 1}, "--shard-degree 1: write a number from 2 on"),
        ({"shard_degree": 3}, "shard degree 3 fills no part of a node and no whole nodes of 1 no"),
        ({"shard_degree": 3}, "; 2, 4 do$"),
        ({"shard_degree": 3, "nodes": 6}, "of 6 nodes of 4 GPUs; 2, 4, 8, 12, 24 do$"),
        (
            {"shard_degree": 4, "tensor": 2},
            "shard degree 4 with groups of 2 GPUs fills no part of a node and no .*; 2 do",
        ),
        (
            {"gpus": 1},
            "sharded state needs at least 2 GPUs that share it; groups of 1 GPU on 1 node of",
        ),
        (
            {"num_microbatches": 3},
            "none of 2, 4, the shard degrees that fill 1 node of 4 GPUs, divides the 3",
        ),
        (
            {"num_microbatches": 6, "shard_degree": 4},
            "shard degree 4 does not divide the 6 microba",
        ),
        ({"tensor": "per-stage"}, "--tensor per-stage gives stages tensor degrees of their own"),
        ({"target": "megatron"}, "the export for Megatron-Core takes none, zero1; take one"),
        ({"shard": "none", "context": "2", "target": "torch"}, "has no context degree; leave out"),
        ({"shard": "none", "expert": "2", "target": "torch"}, "has no expert degree; leave out"),
        (
            {
                "given": msgspec.structs.replace(EXPERTS, microbatch_size=2),
                "expert": "4",
                "shard": "none",
            },
            "expert degree 4 does not divide a microbatch of 2 samples; take a --microbatch-size",
        ),
        ({"shard": "none", "expert": "2,2"}, "--expert 2,2: give each degree once"),
        ({"shard": "none", "expert": "2,4"}, "no expert degree 2 or 4, .* test --expert 2,4$"),
        (
            {"shard": "none", "context": "two"},
            "'two' are no context degrees; write auto, or numbers",
        ),
        (
            {"shard": "none", "context_exchange": "ring"},
            "--context-exchange ring is for GPUs that divide each sequence; ask for them: --context auto",
        ),
        ({"context": "2", "context_exchange": "bus"}, "unknown --context-exchange 'bus'"),
        (
            {"given": CONTEXTS, "shard": "none", "context": "2", "context_exchange": "ring"},
            "no context degree 2 with ring exchange, only .*--context 2$",
        ),
        (
            {"context": "2", "context_exchange": "ring", "target": "torchtitan", "shard": "none"},
            "--context-exchange ring is for autopart run: the export for torchtitan gathers keys",
        ),
        ({"shard": "none", "context": "2,2"}, "--context 2,2: give each degree once"),
        (
            {"shard": "none", "context": "2"},
            "no context degree 2, only tensor degrees 1, 2, 2 with",
        ),
        ({"shard": "none", "context": "2,4"}, "autopart profile test --context 2,4$"),
        ({"shard": "none", "context": "auto"}, "the profile has no context degree above 1"),
        (
            {"given": CONTEXTS, "context": "4", "tensor": 2, "shard": "none", "gpus": 4},
            "a rank group of 8 GPUs does not fill a node of 4 GPUs: the product of its degrees must",
        ),
        (
            {"given": CONTEXTS, "context": "4", "tensor": 2, "shard": "none", "gpus": 12},
            "must divide the GPUs of a node, as 1, 2, 3, 4, 6, 12 do$",
        ),
        (
            {"given": CONTEXTS, "context": "4", "shard": "none", "gpus": 2, "nodes": 3},
            "a rank group of 4 GPUs does not fill a node of 2 GPUs: the product .* or be whole nodes, as 6 do$",
        ),
        (
            {"tensor": 2, "gpus": 1, "nodes": 4},
            "a tensor group of 2 GPUs does not fill a node of 1 GPU: the tensor degree must",
        ),
        (
            {"given": CONTEXTS, "context": "8", "tensor": 2, "shard": "none"},
            "no tensor degree 2 and context degree 8, only .*--tensor 2 --context 8$",
        ),
    ],
)
def test_a_group_that_is_not_there_is_refused_in_one_line(options: dict[str, Any], message: str):
    with pytest.raises(AutopartError, match=message) as told:
        solved(**options)
    assert "\n" not in str(told.value)


def test_different_gpus_share_no_state():
    kinds = tuple(
        GpuGroup(count=2, name=name, memory_bytes=1 << 40, speed=speed)
        for name, speed in (("a", 1.0), ("b", 0.5))
    )
    with pytest.raises(AutopartError, match="leave --context, --expert and --shard out"):
        solve(GIVEN, cluster(1, 4, gpus=kinds), num_microbatches=4, shard="zero2")


@pytest.mark.parametrize(("attention", "has_ring"), [(1.0, True), (0.0, False)])
def test_the_cheaper_exchange_is_chosen(attention: float, has_ring: bool) -> None:
    """The ring has five times the bytes of the gather. Attention hides all of them or nothing."""
    given = with_rings(CONTEXTS, attention)
    plan = solved(given, context="2", shard="none", gpus=2)
    assert plan.group == Group(context=2, exchange="ring" if has_ring else msgspec.UNSET)
    assert "context degree 2 with ring exchange or without" in plan.certificate.assumes
    assert all(check.passed for check in verify(plan, given))
    steps = {
        word: solved(given, context="2", context_exchange=word, shard="none", gpus=2)
        for word in ("ring", "gather")
    }
    assert [steps[w].group.exchange for w in steps] == ["ring", msgspec.UNSET]  # pyright: ignore
    assert plan.prediction.step_time == min(p.prediction.step_time for p in steps.values())
    assert "with ring exchange on" in steps["ring"].certificate.assumes
    assert "ring" not in steps["gather"].certificate.assumes
    assert options_of(steps["ring"]).context_exchange == "ring"
    assert all(check.passed for one in steps.values() for check in verify(one, given))


@pytest.mark.parametrize(("target", "exchange"), [("torchtitan", "gather"), ("megatron", "auto")])
def test_a_target_that_only_gathers_fixes_the_exchange(target: str, exchange: str) -> None:
    options = SolveOptions(context="2", shard="none", target=target)
    assert with_target(options, cluster(1, 4), "float32").context_exchange == exchange


def test_only_targets_with_a_ring_take_one() -> None:
    plan = in_groups(language_plan([2, 2]), 1, context=2, ring=True)
    for target in ("torchtitan", "automodel"):
        with pytest.raises(ExportRefused, match=r"with ring exchange, .* gathers keys and values"):
            export_plan(plan, target)
    assert export_plan(plan, "primus").files


def test_a_ring_shares_state_too() -> None:
    plan = solved(with_rings(CONTEXTS, 1.0), gpus=8, context="2", shard="zero3")
    assert isinstance(plan.group, Group)
    assert (plan.group.exchange, plan.group.shard) == ("ring", "zero3")
    assert all(check.passed for check in verify(plan, with_rings(CONTEXTS, 1.0)))


def test_context_degrees_are_searched_with_the_others():
    plan = solved(CONTEXTS, gpus=8, context="auto", tensor="auto", shard="auto")
    assert all(check.passed for check in verify(plan, CONTEXTS))
    groups = [size.group for size in plan.sizes if isinstance(size.group, Group)]
    assert Group(tensor=2, context=2, data=2, shard="zero3", reduce="microbatch") in groups
    assert {(g.tensor, g.context) for g in groups} == {(t, c) for t in (1, 2) for c in (1, 2, 4)}
    assert "every context degree in 1, 2, 4" in plan.certificate.assumes
    one = solved(CONTEXTS, gpus=8, context="2", shard="none")
    assert one.group == Group(context=2)
    assert "context degree 2" in plan_title(one)


def test_expert_degrees_are_searched_with_the_others():
    plan = solved(EXPERTS, gpus=8, expert="auto", context="1,2", tensor="auto", shard="auto")
    assert all(check.passed for check in verify(plan, EXPERTS))
    groups = [size.group for size in plan.sizes if isinstance(size.group, Group)]
    assert Group(tensor=2, expert=2, data=2, shard="zero3", reduce="microbatch") in groups
    degrees = itertools.product((1, 2), (1, 2), (1, 2, 4))
    assert {(g.tensor, g.context, g.expert) for g in groups} == {
        one for one in degrees if math.prod(one) <= 8
    }
    assert "every expert degree in 1, 2, 4" in plan.certificate.assumes
    one = solved(EXPERTS, gpus=8, expert="4", shard="none")
    assert one.group == Group(expert=4) and "expert degree 4" in plan_title(one)
    both = solved(EXPERTS, gpus=8, expert="2", context="2", shard="none")
    assert both.group == Group(context=2, expert=2)
    assert "context degree 2, expert degree 2" in plan_title(both)


@pytest.mark.parametrize(
    "options",
    [
        {"given": EXPERTS, "shard": "none", "expert": "1,2"},
        {"given": EXPERTS, "shard": "zero3", "expert": "auto", "tensor": 2},
        {"shard": "auto"},
        {"shard": "zero2", "shard_degree": 2, "tensor": "auto"},
        {"shard": "zero3, none"},
        {"given": CONTEXTS, "shard": "none", "context": "1,2"},
        {"given": CONTEXTS, "shard": "zero3", "context": "auto", "tensor": 2},
    ],
)
def test_a_plan_asks_its_question_again(options: dict[str, Any]):
    plan = solved(**options)
    given = options.get("given", GIVEN)
    again = solve_with_options(given, plan.cluster, options_of(plan))
    assert msgspec.structs.replace(again, origin=plan.origin) == plan


def test_baselines_have_the_group_of_the_plan():
    plan = solved(num_stages=2, shard="auto", nodes=2)
    for other in baselines(GIVEN, plan).values():
        assert isinstance(other, Plan)
        assert (other.group, other.training.zero1) == (plan.group, plan.training.zero1)
        assert other.prediction.step_time >= plan.prediction.step_time * (1 - 1e-9)


def test_tables_name_the_group_and_files_keep_it(tmp_path: Path):
    plan = solved(nodes=2, tensor=2, sequence_parallel="off", num_stages=2)
    title = plan_title(plan)
    assert title.startswith("test in 2 stages x tensor degree 2, zero3 over 2 GPUs on 8 of 8")
    assert "tensor degree 2, zero3 over 2 GPUs: rank q is the GPUs 4 q" in " ".join(figures(plan))
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan


def test_exports_refuse_zero3_by_name():
    plan = solved(num_stages=2, shard_degree=2)
    for target in ("torch", "megatron", "deepspeed", "vllm"):
        with pytest.raises(ExportRefused, match="the plan has zero3 over 2 GPUs, and"):
            export_plan(plan, target)


PLAN = solved(shard="auto", nodes=2, num_stages=2)


def refusal(plan: Plan) -> str:
    """The first check that refuses an altered plan, whose certificate says what its figures give."""
    problem = PlanProblem(plan, [GIVEN])
    value = plan.prediction.step_time
    try:
        every = [problem.problem_at(size) for size in plan.sizes]
        changed = certificate(problem.problem, value, plan.sizes, every)
        plan = msgspec.structs.replace(plan, certificate=changed)
    except AutopartError:
        pass
    checks = verify(plan, GIVEN)
    assert not checks[-1].passed
    return checks[-1].detail


def test_altered_plans_with_sharded_state_are_refused():
    replace = msgspec.structs.replace
    assert all(check.passed for check in verify(PLAN, GIVEN))
    assert "leaves out microbatches of" in refusal(
        replace(PLAN, sizes=tuple(s for s in PLAN.sizes if s.zero1 is msgspec.UNSET))
    )
    zero1 = replace(PLAN, training=replace(PLAN.training, zero1=not PLAN.training.zero1))
    assert refusal(zero1)
    demand = replace(PLAN.demands.group, shard=("zero2",))  # type: ignore[type-var]
    only = replace(PLAN, demands=replace(PLAN.demands, group=demand))
    assert "names, against its demands, microbatches" in refusal(only)
    group = PLAN.group
    assert isinstance(group, Group)
    other = replace(group, shard="zero2" if group.shard == "zero3" else "zero3")
    assert refusal(replace(PLAN, group=other))
    with pytest.raises(PlanError, match="cannot be divided over the"):
        check_plan(replace(PLAN, microbatch_size=PLAN.microbatch_size + 1))


@pytest.mark.parametrize(
    ("target", "kinds"),
    [
        ("torchtitan", ("none", "zero1", "zero2", "zero3")),
        ("automodel", ("zero1", "zero2")),
        ("megatron", ("none", "zero1")),
    ],
)
def test_a_target_searches_the_kinds_of_sharded_state_that_it_has(
    target: str, kinds: tuple[str, ...]
):
    plan = solved(shard="auto", target=target, num_stages=2)
    demand = plan.demands.group
    assert isinstance(demand, GroupDemand) and demand.shard == kinds
    reduced = {s.group.reduce for s in plan.sizes if isinstance(s.group, Group)}
    assert reduced == ({"step"} if "zero2" in kinds else set())
    assert all(check.passed for check in verify(plan, GIVEN))
