"""What an action of the executor costs beside its layers.

A model of next to no work runs through the executor, one stage with a replica on every rank, so
that nothing is sent. What its actions take, and what the rank does between them, less the times
that a profile of the same model gives its layers, is the overhead. On a GPU the host does this
while the device works off its queue, and such a small model would show the host's time: there
it is not measured.
"""

import statistics

from autopart.cluster import cluster_of
from autopart.plan import Plan
from autopart.planner import solve
from autopart.profile import Profile
from autopart.runtime.execution.pipeline import Pipeline, make_pipeline
from autopart.runtime.execution.step_trace import StepTrace
from autopart.runtime.models.model import Batch, build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from autopart.runtime.probing.ranks import Ranks
from autopart.runtime.profiling.profiler import profile_model

_MODEL = "autopart.runtime.probing.small_model:build_model"
_MICROBATCHES = 16
"""For each rank, in a step."""
_STEPS, _WARMUP = 12, 3


def measure_overhead(ranks: Ranks) -> float | None:
    """Seconds, the median over steps on the rank where it is most; None on a GPU. Every rank must
    call this."""
    if ranks.device.type == "cuda":
        return None
    profile = profile_model(_MODEL)
    plan = ranks.gather(_plan(profile, ranks.size), "the plan of a small model")[0]
    pipeline, batch = _pipeline(plan)
    of_steps: list[float] = []
    for _ in range(_WARMUP + _STEPS):
        pipeline.step(dict.fromkeys(pipeline.microbatches, batch))
        of_steps.append(_time_of_action(pipeline.executor.trace()))
    mine = statistics.median(of_steps[_WARMUP:]) - _time_of_layers(profile)
    return max(0.0, *ranks.gather(mine, "the times of actions"))


def _plan(profile: Profile, size: int) -> Plan:
    return solve(
        profile,
        cluster_of("cpu", gpus=size),
        num_stages=1,
        num_replicas=size,
        num_microbatches=_MICROBATCHES * size,
        schedule="1f1b",
    )


def _pipeline(plan: Plan) -> tuple[Pipeline, Batch]:
    source = load_model(_MODEL)
    batch = example_batch(source, plan.microbatch_size)
    return make_pipeline(plan, build_training_model(source).model, batch), batch


def _time_of_action(trace: StepTrace) -> float:
    return (trace.end - trace.sync_time - trace.blocked_time) / len(trace.slices)


def _time_of_layers(profile: Profile) -> float:
    """Of an action on the average: half of a forward and a backward."""
    layers = profile.graph.layers
    return sum(la.forward_time + la.input_grad_time + la.weight_grad_time for la in layers) / 2
