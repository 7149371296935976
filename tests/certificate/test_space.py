"""A plan's own layout lies among the layouts that its bound covers."""

import msgspec
import pytest

from autopart.certificate.space import check_covered
from autopart.errors import PlanError
from autopart.records.cluster import GpuGroup
from autopart.records.plan import Plan, Stage
from autopart.records.problem import Demands
from autopart.search.planner import solve
from tests.support.problems import chain_graph, cluster, layer, profile

PLAN = solve(
    profile(chain_graph(*(layer(f"l{i}") for i in range(8)))),
    cluster(1, 4),
    num_microbatches=8,
    num_stages=2,
    num_replicas=2,
)


def lying_on(ranks: list[tuple[int, ...]], schedule: str = "1f1b", **demands: object) -> Plan:
    """A plan whose stages lie on these ranks, with the orders of a schedule that lies so."""
    stages = tuple(Stage(layers=(f"l{s}",), ranks=own) for s, own in enumerate(ranks))
    return msgspec.structs.replace(
        PLAN,
        stages=stages,
        schedule=schedule,
        demands=Demands(**demands),  # pyright: ignore[reportArgumentType]
    )


@pytest.mark.parametrize(
    "plan",
    [
        PLAN,
        lying_on([(0, 1), (2, 3)]),
        lying_on([(3, 0), (2, 1)]),
        lying_on([(2,)]),
        lying_on([(0,), (1,), (0,), (1,)], "interleaved-1f1b", schedules=("interleaved-1f1b",)),
        lying_on([(0,), (1,), (1,), (0,)], "zbv", schedules=("1f1b", "zbv"), stages_per_rank=2),
        lying_on([(0,), (1,), (1,), (0,)], "custom", schedules=("zbv", "custom")),
        lying_on([(0,), (1,)], "custom", schedules=("1f1b", "custom")),
        lying_on([(0, 1, 2), (3,)], replicas_per_stage=True),
        lying_on([(0, 3), (1, 2), (2, 1), (3, 0)], "chimera", schedules=("chimera",)),
        lying_on([(3, 0, 1, 2), (0, 3, 2, 1)], "gems", schedules=("gems",), stages_per_rank=2),
    ],
)  # fmt: skip
def test_a_layout_of_a_demanded_schedule_is_covered(plan: Plan):
    check_covered(plan)


LOOP, V, ROW = [(0,), (1,), (0,), (1,)], [(0,), (1,), (1,), (0,)], [(0,), (1,)]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (lying_on([(0, 1), (1, 0)], "gems", schedules=("gems",), stages_per_rank=3), "3 stages per rank demanded, the plan has 2"),
        (lying_on([(0, 1), (0, 1)], "gems", schedules=("gems",)), "the same ranks in opposite directions"),
        (lying_on([(0,), (1,)], "gems", schedules=("gems",)), "the same ranks in opposite directions"),
        (lying_on([(0, 2), (1, 1), (2, 0)], "gems", schedules=("gems",)), "a rank has a stage twice"),
        (lying_on([(0, 0), (0, 0)], "gems", schedules=("gems",)), "two stages of one direction"),
        (lying_on([(0, 1, 1, 0), (1, 0, 0, 1)], "gems", schedules=("gems",)), "rank 0 has several stages or replicas"),
        (lying_on(ROW, stages_per_rank=2), "2 stages per rank demanded, the plan has 1"),
        (lying_on([(0,), (1,), (0,)], stages_per_rank=1), "the plan has 1 or 2"),
        (lying_on(LOOP, "custom", schedules=("1f1b", "custom")), "does not cover the plan"),
        (lying_on(ROW, "custom", schedules=("custom",)), "does not cover the plan"),
        (lying_on(V, "custom", schedules=("interleaved-1f1b", "custom")), "no schedule of interl"),
        (lying_on([(0,), (1,), (0,)], "custom", schedules=("1f1b", "custom")), "on ranks 0, 1, 0"),
        (lying_on(LOOP * 3, "custom", schedules=("interleaved-1f1b", "custom")), "does not cover"),
        (lying_on([(0,), (0,)], "custom", schedules=("interleaved-1f1b", "custom")), "does not cov"),
        (lying_on([(0, 1), (1, 2)], replicas_per_stage=True), "rank 1 has several stages"),
        (lying_on([(0, 1), (1, 0)]), "rank 0 has several stages or replicas"),
        (lying_on([(0, 2), (1, 3), (1, 2), (0, 3)], "zbv", schedules=("zbv",)), "replicas differ"),
    ],
)  # fmt: skip
def test_a_layout_outside_the_bound_is_refused(plan: Plan, message: str):
    with pytest.raises(PlanError, match=message):
        check_covered(plan)


@pytest.mark.parametrize("ranks", [[(2, 3), (0, 1)], [(0, 1), (3, 2)], [(0,), (2,)]])
def test_where_gpus_and_replicas_differ_the_bound_covers_gpus_in_their_order(
    ranks: list[tuple[int, ...]],
):
    gpus = tuple(GpuGroup(count=2, name=name, memory_bytes=1 << 40) for name in ("a", "b"))
    mixed = msgspec.structs.replace(PLAN.cluster, gpus=gpus)
    plan = msgspec.structs.replace(lying_on(ranks, replicas_per_stage=True), cluster=mixed)
    with pytest.raises(PlanError, match="GPUs in their order"):
        check_covered(plan)
    check_covered(msgspec.structs.replace(plan, stages=lying_on([(2,), (3,)]).stages))
