"""The check finds each way of breaking the executor: no false pass."""

from functools import cache

import msgspec
import pytest

from autopart.records.plan import Plan
from autopart.runtime.engine.run_settings import RunSettings
from tests.support.long_tests import long_except
from tests.support.runtime.broken_executors import FAULTS, complaint_with
from tests.support.runtime.plans import capture, plan_for
from tests.support.runtime.rank_pool import RankPool

pytestmark = pytest.mark.slow

PERCEPTRON, GPT2, RESNET = "zoo:mlp-tiny", "zoo:gpt2-tiny", "zoo:resnet-tiny"
DRAWING = "tests/support/models/drawing.py:diffusion"
PYTHONS = "tests/support/models/drawing.py:pythons_numbers"
PICKING = "tests/support/models/opaque.py:picking"

IN_LOOP = {"ranks": [(0,), (1,), (0,), (1,)], "schedule": "interleaved-1f1b"}


def planned(
    model: str, cuts: tuple[float, ...] = (0.5,), policy: str = "", **keywords: object
) -> Plan:
    """A plan for the model, with every layer but the loss under the policy."""
    of = plan_for(model, capture(model), cuts, **keywords)
    if policy:
        stages = tuple(
            msgspec.structs.replace(s, **{policy: tuple(la for la in s.layers if la != "loss")})
            for s in of.stages
        )
        of = msgspec.structs.replace(of, stages=stages)
    return of


def with_zero1(of: Plan) -> Plan:
    return msgspec.structs.replace(of, training=msgspec.structs.replace(of.training, zero1=True))


@cache
def plan(kind: str) -> Plan:
    return {
        "stages in a loop": lambda: planned(PERCEPTRON, (0.25, 0.5, 0.75), **IN_LOOP),
        "two stages": lambda: planned(PERCEPTRON),
        "a tied head": lambda: planned(GPT2),
        "replicas": lambda: planned(PERCEPTRON, (), replicas=2),
        "shards": lambda: with_zero1(planned(PERCEPTRON, (), replicas=2)),
        "random layers that run again": lambda: planned(DRAWING, policy="recompute"),
        "layers with numbers of Python": lambda: planned(PYTHONS, policy="recompute"),
        "layers that run again": lambda: planned(PERCEPTRON, policy="recompute"),
        "batch norms that run again": lambda: planned(RESNET, policy="recompute"),
        "offloaded layers": lambda: planned(PERCEPTRON, policy="offload"),
        "values that pick layers": lambda: planned(PICKING),
        "split backwards": lambda: planned(PERCEPTRON, schedule="zb-h1"),
        "no flushes": lambda: planned(PERCEPTRON),
        "clipped gradients": lambda: planned(PERCEPTRON),
        "sums beside backwards": lambda: planned(PERCEPTRON, (), replicas=2),
    }[kind]()


BREAKS = {
    "wrong microbatch scaling": "two stages",
    "wrong loss scale of one microbatch": "two stages",
    "wrong loss that is reported": "two stages",
    "dropped message of gradients": "two stages",
    "dropped gradient of one parameter": "two stages",
    "dropped update of one rank": "two stages",
    "gradients that are not cleared": "two stages",
    "stale weights": "two stages",
    "weights one version too old": "no flushes",
    "swapped stages": "stages in a loop",
    "swapped microbatches": "two stages",
    "message of another microbatch": "two stages",
    "missing sum of gradients": "replicas",
    "mean in place of a sum": "a tied head",
    "sum that begins before the last backward": "sums beside backwards",
    "norm that leaves out one rank": "clipped gradients",
    "gradients that are not clipped": "clipped gradients",
    "missing gather of shards": "shards",
    "missing sum of shards": "shards",
    "other random numbers in the second run": "random layers that run again",
    "other numbers of python in the second run": "layers with numbers of Python",
    "second run with another input": "layers that run again",
    "statistics that count twice": "batch norms that run again",
    "weight gradient that is left out": "split backwards",
    "zeros in place of no gradient": "values that pick layers",
    "stash that comes back wrong": "offloaded layers",
}
"""The kind of plan that each fault breaks."""

FAULTS_IN_CI = (
    "wrong loss scale of one microbatch",
    "wrong loss that is reported",
    "gradients that are not cleared",
    "weights one version too old",
    "swapped stages",
    "norm that leaves out one rank",
    "sum that begins before the last backward",
    "missing gather of shards",
    "other random numbers in the second run",
    "other numbers of python in the second run",
    "statistics that count twice",
    "weight gradient that is left out",
    "zeros in place of no gradient",
    "stash that comes back wrong",
)
"""Faults of slow tests. Between them they break losses, gradients, parameters and buffers."""

WORKING_IN_CI = (
    "stages in a loop",
    "shards",
    "layers with numbers of Python",
    "batch norms that run again",
    "offloaded layers",
    "values that pick layers",
    "no flushes",
    "clipped gradients",
)
"""Kinds of plans that pass in these slow tests. Slow tests elsewhere train the other kinds."""


def complaints(pool: RankPool, kind: str, fault: str) -> list[str]:
    of = plan(kind)
    options: dict[str, object] = {
        "no flushes": {"asynchronous": "pipedream"},
        "clipped gradients": {"clip_norm": 0.1},
        "values that pick layers": {"optimizer": "adamw", "steps": 12},
        "sums beside backwards": {"sync": "overlap"},
    }.get(kind, {})
    settings = RunSettings(model=of.origin.model, check=True, **{"steps": 2, **options})  # pyright: ignore
    return pool.call(complaint_with, of, settings, fault)


@pytest.mark.parametrize("kind", long_except(sorted(set(BREAKS.values())), WORKING_IN_CI))
def test_an_executor_that_works_passes(two_ranks: RankPool, kind: str):
    assert complaints(two_ranks, kind, "") == ["", ""]


@pytest.mark.parametrize("fault", long_except(FAULTS, FAULTS_IN_CI))
def test_the_check_finds_a_broken_executor(two_ranks: RankPool, fault: str):
    said, _ = complaints(two_ranks, BREAKS[fault], fault)
    assert "the pipeline differs from the plain model" in said, said


def test_a_tied_weight_that_is_not_summed_is_found(two_ranks: RankPool):
    said, _ = complaints(two_ranks, "a tied head", "missing sum of gradients")
    assert "the gradient of tokens.weight on rank " in said
