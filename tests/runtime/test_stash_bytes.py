"""What stages really keep between forwards and backwards, in runs on real ranks, is what their
profile says: never more, and no more than 5 % less."""

from collections.abc import Sequence
from functools import cache

import msgspec
import pytest

from autopart.cost import held_by
from autopart.graph import Layer, LayerGraph
from autopart.plan import Plan, schedule_of, stage_ranks
from autopart.profile import Profile
from autopart.runtime.execution.training import RunSettings
from autopart.runtime.profiling.profiler import profile_model
from autopart.schedules import KINDS, make_schedule, place_stages
from autopart.stage_load import stage_loads
from tests.runtime.on_ranks import run
from tests.runtime.plans import capture, plan_for
from tests.runtime.rank_pool import RankPool

WAYS = ("keep", "recompute", "selective", "offload")
SCHEDULES = ("gpipe", "1f1b", "interleaved-1f1b")
ZOO = [f"zoo:{name}-tiny" for name in ("llama", "resnet", "unet", "moe", "encdec", "mlp")]
HUGGING_FACE = [f"tests/models/hf_{name}.py" for name in ("gpt2", "llama", "bert", "t5")]


@cache
def profile_of(model: str) -> Profile:
    return profile_model(model, microbatch_size=2, warmup=0, repeats=1)


def treatable(layer: Layer, way: str) -> bool:
    options = {"recompute": layer.recompute, "selective": layer.selective}
    return bool(options.get(way, way == "offload" and layer.stash_bytes))


def plan_of(model: str, schedule: str, way: str) -> Plan:
    """Uneven stages, in which every layer that can be goes the same way."""
    ranks = place_stages(KINDS[schedule], 2, KINDS[schedule].stages_per_rank or 2)
    cuts = [(s / len(ranks)) ** 0.8 for s in range(1, len(ranks))]
    orders = make_schedule(schedule, ranks, 4)
    plan = plan_for(model, capture(model, 2), cuts, schedule=schedule, ranks=ranks, orders=orders)
    layers = {layer.name: layer for layer in profile_of(model).graph.layers}
    treated = [
        tuple(name for name in stage.layers if treatable(layers[name], way))
        for stage in plan.stages
    ]
    if way == "keep":
        return plan
    stages = zip(plan.stages, treated, strict=True)
    return msgspec.structs.replace(
        plan,
        stages=tuple(msgspec.structs.replace(stage, **{way: names}) for stage, names in stages),
    )


def spared(graph: LayerGraph, layers: Sequence[str], treated: Sequence[str], way: str) -> int:
    """Of the stash of a stage of `layers`, what `treated` no longer keep: their own, but for what
    stays, and where they run again less the values made here that no backward needed before."""
    total = 0
    for layer in graph.layers:
        if layer.name in treated:
            again = {"recompute": layer.recompute, "selective": layer.selective}.get(way)
            total += layer.stash_bytes - (again.stash_bytes if again else 0)
    for value in graph.values if way != "offload" else ():
        inside = value.producer in layers and not value.kept_by
        if inside and any(name in treated for name in value.consumers):
            total -= value.bytes
    return total


def predicted(plan: Plan, way: str) -> list[int]:
    graph = profile_of(plan.origin.model).graph
    place = {layer.name: at for at, layer in enumerate(graph.layers)}
    members = tuple(tuple(place[name] for name in stage.layers) for stage in plan.stages)
    counts = held_by(schedule_of(plan), stage_ranks(plan))
    return [
        held * (load.stash_bytes - spared(graph, stage.layers, getattr(stage, way, ()), way))
        for held, load, stage in zip(counts, stage_loads(graph, members), plan.stages, strict=True)
    ]


def check_stashes(pool: RankPool, model: str, schedule: str, way: str) -> None:
    plan = plan_of(model, schedule, way)
    result = pool.call(run, plan, RunSettings(model=model, steps=1, check=True))[0]
    for index, (stage, most) in enumerate(zip(result.stages, predicted(plan, way), strict=True)):
        assert 0.95 * most <= stage.stash_bytes <= most, f"stage {index}: {most} predicted"


@pytest.mark.parametrize("way", WAYS)
def test_stages_of_gpt2_keep_what_is_predicted(two_ranks: RankPool, way: str):
    check_stashes(two_ranks, "zoo:gpt2-tiny", "1f1b", way)


def test_every_way_keeps_less_than_the_one_before():
    for stashes in zip(
        *(
            predicted(plan_of("zoo:gpt2-tiny", "1f1b", way), way)
            for way in ("keep", "selective", "recompute")
        ),
        strict=True,
    ):
        assert list(stashes) == sorted(set(stashes), reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("model", ["zoo:gpt2-tiny", *ZOO])
def test_stages_of_every_example_keep_what_is_predicted(
    two_ranks: RankPool, model: str, schedule: str, way: str
):
    check_stashes(two_ranks, model, schedule, way)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", HUGGING_FACE)
def test_stages_of_hugging_face_models_keep_what_is_predicted(
    two_ranks: RankPool, model: str, way: str
):
    pytest.importorskip("transformers")
    check_stashes(two_ranks, model, "1f1b", way)
