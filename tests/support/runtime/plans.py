"""Plans for tests of the executor, with given stages and empty predictions."""

from collections.abc import Sequence
from typing import TypedDict, Unpack

import msgspec

from autopart.records.cluster import cluster_of
from autopart.records.plan import Certificate, Origin, Plan, Stage, orders_of
from autopart.records.prediction import Prediction, StagePrediction
from autopart.records.problem import Demands
from autopart.records.training import make_training
from autopart.runtime.capture.capture import Captured
from autopart.runtime.models.model import build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from autopart.schedules.actions import Schedule
from autopart.schedules.catalogue import make_schedule
from tests.support.problems import memory_use
from tests.support.runtime.captured_once import captured_once


def capture(model: str, microbatch_size: int = 2, dtype: str = "float32") -> Captured:
    source = load_model(model)
    batch = example_batch(source, microbatch_size, dtype=dtype)
    return captured_once(build_training_model(source, dtype=dtype), batch)


class PlanKeywords(TypedDict, total=False):
    """Properties of a plan; `_DEFAULTS` has the others."""

    schedule: str
    num_microbatches: int
    replicas: int
    """Ranks per stage, if `ranks` is not given."""
    microbatch_size: int
    dtype: str
    ranks: Sequence[Sequence[int]] | None
    """Ranks of each stage. None: each stage has its own `replicas` ranks."""
    orders: Schedule | None
    """Orders in place of the schedule's own."""


_DEFAULTS: PlanKeywords = {
    "schedule": "1f1b",
    "num_microbatches": 4,
    "replicas": 1,
    "microbatch_size": 2,
    "dtype": "float32",
    "ranks": None,
    "orders": None,
}


def plan_for(
    model: str, captured: Captured, cuts: Sequence[float], **keywords: Unpack[PlanKeywords]
) -> Plan:
    """A plan whose stages end at the given shares of the layers; the last stage ends at 1."""
    names = [layer.name for layer in captured.layers]
    ends = [max(1, round(cut * len(names))) for cut in cuts] + [len(names)]
    begins = [0, *ends[:-1]]
    layers = [names[begin:end] for begin, end in zip(begins, ends, strict=True)]
    return _plan(model, captured.graph_hash, layers, **keywords)


def _plan(
    model: str,
    graph_hash: str,
    layers: Sequence[Sequence[str]],
    **keywords: Unpack[PlanKeywords],
) -> Plan:
    given: PlanKeywords = {**_DEFAULTS, **keywords}
    schedule, num_microbatches, dtype = given["schedule"], given["num_microbatches"], given["dtype"]
    replicas, ranks = given["replicas"], given["ranks"]
    if ranks is None:
        ranks = [range(s * replicas, (s + 1) * replicas) for s in range(len(layers))]
    orders = given["orders"] or make_schedule(schedule, ranks, num_microbatches)
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
        microbatch_size=given["microbatch_size"],
        num_microbatches=num_microbatches,
        training=make_training(dtype),
        demands=Demands(),
        stages=tuple(
            Stage(layers=tuple(la), ranks=tuple(on)) for la, on in zip(layers, ranks, strict=True)
        ),
        schedule=schedule,
        orders=orders_of(orders),
        prediction=Prediction(
            step_time=1.0,
            bubble=0.0,
            rank_peak_bytes=(0,) * len(orders),
            stages=tuple(_nothing() for _ in layers),
            syncs=(),
        ),
        certificate=Certificate(lower_bound=1.0, gap=0.0, simulated=0, assumes="nothing"),
    )


def two_stage_plan() -> Plan:
    """A plan without a model: one layer on each of two ranks, one microbatch."""
    return _plan(
        "model.py",
        "0" * 16,
        [["first"], ["last"]],
        num_microbatches=1,
        microbatch_size=1,
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
