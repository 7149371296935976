"""Every grid of two choices on four processes: degrees, sharded state, replicas and stages.

A choice halves a model's work in one manner. Two choices of different options make a grid for four processes, and a choice
twice makes its degree 4. So no pair can be forgotten: the pairs are computed from the choices.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import msgspec

from autopart.records.plan import Plan
from autopart.records.rank_group import Group, Shard, group_size
from tests.support.places import MODELS
from tests.support.runtime.plans import capture, plan_for

DENSE, MIXTURE = "zoo:llama-tiny", str(MODELS / "hf_mixtral.py")
SAMPLES = 4
"""Samples of a microbatch, whatever the grid. A step has four of them."""

captured = cache(capture)


class Choice(NamedTuple):
    """One choice of degree 2. Choices with one option exclude each other."""

    option: str
    tensor: int = 1
    sequence_parallel: bool = False
    context: int = 1
    ring: bool = False
    """Whether context ranks exchange around a ring."""
    expert: int = 1
    data: int = 1
    shard: Shard | None = None
    replicas: int = 1
    zero1: bool = False
    stages: int = 1


CHOICES = {
    "tensor": Choice("tensor", tensor=2),
    "sequence parallel": Choice("tensor", tensor=2, sequence_parallel=True),
    "context": Choice("context", context=2),
    "expert": Choice("expert", expert=2),
    "zero2": Choice("shard", data=2, shard="zero2"),
    "zero3": Choice("shard", data=2, shard="zero3"),
    "replicas": Choice("replicas", replicas=2),
    "zero1": Choice("replicas", replicas=2, zero1=True),
    "stages": Choice("stages", stages=2),
}


class Grid(NamedTuple):
    """Two choices for a model."""

    model: str
    first: str
    second: str

    @property
    def name(self) -> str:
        """The grid in words, for a test's name."""
        kind = "dense" if self.model == DENSE else "mixture"
        pair = f"{self.first} 4" if self.first == self.second else f"{self.first} x {self.second}"
        return f"{kind}, {pair}"


def pairs(model: str) -> list[Grid]:
    """Every pair of choices that a model has. A dense model has no experts."""
    able = [name for name in CHOICES if name != "expert" or model == MIXTURE]
    return [
        Grid(model, first, second)
        for first, second in itertools.combinations_with_replacement(able, 2)
        if first == second or CHOICES[first].option != CHOICES[second].option
    ]


GRIDS = [*pairs(DENSE), *pairs(MIXTURE)]


def plan_of(grid: Grid) -> Plan:
    """A plan for four processes, of 16 samples in 4 microbatches per step."""
    return plan_of_choices(grid.model, [CHOICES[grid.first], CHOICES[grid.second]])


def plan_of_choices(model: str, choices: Sequence[Choice]) -> Plan:
    """A plan for the product of the choices' degrees, of 16 samples in 4 microbatches per step."""

    def degree(of: Callable[[Choice], int]) -> int:
        return math.prod(map(of, choices))

    data, stages = degree(lambda c: c.data), degree(lambda c: c.stages)
    own = SAMPLES // data
    plan = plan_for(
        model,
        captured(model, own, "float32"),
        [stage / stages for stage in range(1, stages)],
        replicas=degree(lambda c: c.replicas),
        microbatch_size=own,
    )
    degrees = {
        "tensor": degree(lambda c: c.tensor),
        "context": degree(lambda c: c.context),
        "expert": degree(lambda c: c.expert),
        "data": data,
    }
    if math.prod(degrees.values()) > 1:
        shard = next((c.shard for c in choices if c.shard), None)
        group = Group(
            **degrees,
            sequence_parallel=any(c.sequence_parallel for c in choices),
            exchange="ring" if any(c.ring for c in choices) else msgspec.UNSET,
            shard=shard or msgspec.UNSET,
            reduce="microbatch" if shard else msgspec.UNSET,
        )
        size = plan.cluster.gpus_per_node * group_size(group)
        cluster = msgspec.structs.replace(plan.cluster, gpus_per_node=size)
        plan = msgspec.structs.replace(
            plan, group=group, cluster=cluster, microbatch_size=own * data
        )
    training = msgspec.structs.replace(plan.training, zero1=any(c.zero1 for c in choices))
    return msgspec.structs.replace(plan, training=training)
