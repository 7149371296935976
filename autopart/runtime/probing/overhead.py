"""Overhead per action in the executor, beyond its layers.

A tiny model runs through the executor as one stage with a replica on every rank, so nothing is
sent. The overhead is the time in its actions and between them, without the layer times that the
same model's profile has. On a GPU the host does this work while the device is busy, and such a
small model would show only the host's time. There the overhead is not measured.
"""

import statistics

from autopart.records.cluster import cluster_of
from autopart.records.layer_graph import positions
from autopart.records.plan import Certificate, Origin, Plan, Stage, orders_of
from autopart.records.prediction import Prediction
from autopart.records.problem import Demands
from autopart.records.profile import Profile, profile_hash
from autopart.records.training import make_training
from autopart.records.version import __version__
from autopart.runtime.engine.pipeline import Pipeline, make_pipeline
from autopart.runtime.measuring.step_trace import StepTrace
from autopart.runtime.models.model import Batch, build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from autopart.runtime.probing.ranks import Ranks
from autopart.runtime.profiling.profiler import profile_model
from autopart.schedules.catalogue import make_schedule

_MODEL = "autopart.runtime.probing.small_model:build_model"
_MICROBATCHES = 16
"""Microbatches per rank in a step."""
_STEPS, _WARMUP = 12, 3


def measure_overhead(ranks: Ranks) -> float | None:
    """Return the overhead in seconds: the median over steps, on the slowest rank.

    None on a GPU. Every rank must call this.
    """
    if ranks.device.type == "cuda":
        return None
    profile = profile_model(_MODEL)
    plan = ranks.gather(_plan(profile, ranks.size), "the plan of a small model")[0]
    pipeline, batch = _pipeline(plan)
    per_step: list[float] = []
    for _ in range(_WARMUP + _STEPS):
        pipeline.step(dict.fromkeys(pipeline.microbatches, batch))
        per_step.append(_action_time(pipeline.executor.trace()))
    mine = statistics.median(per_step[_WARMUP:]) - _layer_time(profile)
    return max(0.0, *ranks.gather(mine, "the times of actions"))


def _plan(profile: Profile, size: int) -> Plan:
    """Return a plan that only runs: one stage with a replica on every rank, without a
    prediction."""
    ranks, count = tuple(range(size)), _MICROBATCHES * size
    return Plan(
        origin=Origin(
            model=profile.source.model,
            graph_hash=profile.source.graph_hash,
            profile_hash=profile_hash(profile),
            method=profile.method,
            dtype=profile.dtype,
            solver="none",
            solve_seconds=0.0,
            autopart=__version__,
        ),
        cluster=cluster_of("cpu", gpus=size),
        microbatch_size=profile.microbatch_size,
        num_microbatches=count,
        training=make_training(profile.dtype),
        demands=Demands(),
        stages=(Stage(layers=tuple(positions(profile.graph)), ranks=ranks),),
        schedule="1f1b",
        orders=orders_of(make_schedule("1f1b", (ranks,), count)),
        prediction=Prediction(step_time=0.0, bubble=0.0, rank_peak_bytes=(), stages=(), syncs=()),
        certificate=Certificate(lower_bound=0.0, gap=None, simulated=0, assumes="nothing"),
    )


def _pipeline(plan: Plan) -> tuple[Pipeline, Batch]:
    source = load_model(_MODEL)
    batch = example_batch(source, plan.microbatch_size)
    return make_pipeline(plan, build_training_model(source).model, batch), batch


def _action_time(trace: StepTrace) -> float:
    return (trace.end - trace.sync_time - trace.blocked_time) / len(trace.slices)


def _layer_time(profile: Profile) -> float:
    """Return the average layer time per action: half the sum over forward and backward."""
    layers = profile.graph.layers
    return sum(la.forward_time + la.input_grad_time + la.weight_grad_time for la in layers) / 2
