"""Plans for tests of the executor: stages as asked for, predictions that claim nothing."""

from collections.abc import Sequence

import msgspec

from autopart.cluster import cluster_of
from autopart.plan import (
    Certificate,
    Origin,
    Plan,
    Prediction,
    Stage,
    StagePrediction,
    orders_of,
)
from autopart.problem import Demands
from autopart.runtime.capture.capture import Captured, capture_model
from autopart.runtime.models.model import build_training_model, example_batch, load_model
from autopart.schedule import Schedule
from autopart.schedules import make_schedule
from autopart.training import make_training
from tests.problems import memory_use


def capture(model: str, microbatch_size: int = 2, dtype: str = "float32") -> Captured:
    source = load_model(model)
    batch = example_batch(source, microbatch_size, dtype=dtype)
    return capture_model(build_training_model(source, dtype=dtype), batch)


def plan_for(
    model: str,
    captured: Captured,
    cuts: Sequence[float],
    *,
    schedule: str = "1f1b",
    num_microbatches: int = 4,
    replicas: int = 1,
    microbatch_size: int = 2,
    dtype: str = "float32",
    ranks: Sequence[Sequence[int]] | None = None,
    orders: Schedule | None = None,
) -> Plan:
    """A plan whose stages end at the given shares of the layers; the last one ends at the end.

    `ranks` places the stages freely, else each has `replicas` ranks of its own; `orders` replaces
    the schedule's.
    """
    names = [layer.name for layer in captured.layers]
    ends = [max(1, round(cut * len(names))) for cut in cuts] + [len(names)]
    begins = [0, *ends[:-1]]
    return _plan(
        model,
        captured.graph_hash,
        [names[begin:end] for begin, end in zip(begins, ends, strict=True)],
        schedule=schedule,
        num_microbatches=num_microbatches,
        replicas=replicas,
        microbatch_size=microbatch_size,
        dtype=dtype,
        ranks=ranks,
        orders=orders,
    )


def _plan(
    model: str,
    graph_hash: str,
    layers: Sequence[Sequence[str]],
    *,
    schedule: str,
    num_microbatches: int,
    replicas: int,
    microbatch_size: int,
    dtype: str,
    ranks: Sequence[Sequence[int]] | None = None,
    orders: Schedule | None = None,
) -> Plan:
    if ranks is None:
        ranks = [range(s * replicas, (s + 1) * replicas) for s in range(len(layers))]
    return Plan(
        origin=Origin(
            model=model,
            graph_hash=graph_hash,
            profile_hash="",
            method="measured",
            dtype=dtype,
            solver="by hand",
            solve_seconds=0.0,
            autopart="0",
        ),
        cluster=cluster_of("cpu", gpus=1 + max(map(max, ranks))),
        microbatch_size=microbatch_size,
        num_microbatches=num_microbatches,
        training=make_training(dtype),
        demands=Demands(),
        stages=tuple(
            Stage(layers=tuple(la), ranks=tuple(on)) for la, on in zip(layers, ranks, strict=True)
        ),
        schedule=schedule,
        orders=orders_of(orders or make_schedule(schedule, ranks, num_microbatches)),
        prediction=Prediction(
            step_time=1.0,
            bubble=0.0,
            rank_peak_bytes=(),
            stages=tuple(_nothing() for _ in layers),
            syncs=(),
        ),
        certificate=Certificate(lower_bound=1.0, gap=0.0, simulated=0, assumes="nothing"),
    )


def two_stage_plan() -> Plan:
    """A plan of no model: one layer on each of two ranks, one microbatch."""
    return _plan(
        "model.py",
        "0" * 16,
        [["first"], ["last"]],
        schedule="1f1b",
        num_microbatches=1,
        replicas=1,
        microbatch_size=1,
        dtype="float32",
    )


def _nothing() -> StagePrediction:
    memory = memory_use()
    return StagePrediction(
        forward_time=0.0,
        backward_time=0.0,
        weight_grad_time=0.0,
        busy_time=0.0,
        send_time=0.0,
        send_back_time=0.0,
        update_time=0.0,
        in_flight=1,
        stash_bytes=0,
        memory=memory,
        peak_bytes=0,
    )


def with_orders(plan: Plan, schedule: Schedule) -> Plan:
    """The plan with other orders."""
    return msgspec.structs.replace(plan, orders=orders_of(schedule))
