"""Handmade plans, complete enough for an export."""

from collections.abc import Sequence

import msgspec

from autopart.records.cluster import Cluster, Link
from autopart.records.plan import Certificate, Origin, Plan, Stage, check_plan, orders_of
from autopart.records.prediction import Prediction, StagePrediction
from autopart.records.problem import Demands
from autopart.records.training import Training
from autopart.schedules.actions import Schedule
from autopart.schedules.catalogue import make_schedule
from tests.support.problems import memory_use

LINK = Link(bandwidth=1e9)
NOTHING = memory_use()
UNPREDICTED = StagePrediction(
    forward_time=0.0, backward_time=0.0, weight_grad_time=0.0, busy_time=0.0, send_time=0.0,
    send_back_time=0.0, update_time=0.0, in_flight=1, stash_bytes=0, memory=NOTHING, peak_bytes=0,
)  # fmt: skip


def make_plan(
    layers: Sequence[Sequence[str]],
    ranks: Sequence[Sequence[int]],
    num_microbatches: int,
    schedule: str = "1f1b",
    microbatch_size: int = 2,
    orders: Schedule | None = None,
) -> Plan:
    """A checked plan with these stages and an empty prediction.

    The orders are the schedule's, or `orders`.
    """
    stages = tuple(
        Stage(layers=tuple(names), ranks=tuple(on)) for names, on in zip(layers, ranks, strict=True)
    )
    num_ranks = len({rank for on in ranks for rank in on})
    plan = Plan(
        origin=Origin(
            model="model.py", graph_hash="", profile_hash="", method="measured", dtype="float32",
            solver="by hand", solve_seconds=0.0, autopart="0",
        ),
        cluster=Cluster(
            gpu="cpu", num_nodes=1, gpus_per_node=num_ranks, memory_bytes=1 << 40,
            intra_node=LINK, inter_node=LINK,
        ),
        microbatch_size=microbatch_size,
        num_microbatches=num_microbatches,
        training=Training(optimizer="sgd"),
        demands=Demands(),
        stages=stages,
        schedule=schedule,
        orders=orders_of(orders or make_schedule(schedule, ranks, num_microbatches)),
        prediction=Prediction(
            step_time=0.0, bubble=0.0, rank_peak_bytes=(0,) * num_ranks, stages=(UNPREDICTED,) * len(stages),
            syncs=(),
        ),
        certificate=Certificate(lower_bound=0.0, gap=None, simulated=0, assumes=""),
    )  # fmt: skip
    check_plan(plan)
    return plan


def with_policies(plan: Plan, **policies: tuple[str, ...]) -> Plan:
    """The plan with these layers under these policies."""
    stages = tuple(
        msgspec.structs.replace(
            stage,
            **{
                policy: tuple(la for la in stage.layers if la in names)
                for policy, names in policies.items()
            },
        )
        for stage in plan.stages
    )
    return msgspec.structs.replace(plan, stages=stages)
