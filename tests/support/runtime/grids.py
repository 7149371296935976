"""Every grid of two choices on four processes: degrees, sharded state, replicas and stages.

A choice halves a model's work in one manner. Two choices of different options make a grid for four processes, and a choice
twice makes its degree 4. So no pair can be forgotten: the pairs are computed from the choices.
"""

import itertools
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
    one, two = CHOICES[grid.first], CHOICES[grid.second]
    data, replicas, stages = (
        a * b
        for a, b in ((one.data, two.data), (one.replicas, two.replicas), (one.stages, two.stages))
    )
    shard = one.shard or two.shard
    cuts = [stage / stages for stage in range(1, stages)]
    own = SAMPLES // data
    plan = plan_for(
        grid.model,
        captured(grid.model, own, "float32"),
        cuts,
        replicas=replicas,
        microbatch_size=own,
    )
    degrees = {"tensor": one.tensor * two.tensor, "context": one.context * two.context}
    degrees |= {"expert": one.expert * two.expert, "data": data}
    if replicas * stages < 4:
        group = Group(
            **degrees,
            sequence_parallel=one.sequence_parallel or two.sequence_parallel,
            shard=shard or msgspec.UNSET,
            reduce="microbatch" if shard else msgspec.UNSET,
        )
        size = plan.cluster.gpus_per_node * group_size(group)
        cluster = msgspec.structs.replace(plan.cluster, gpus_per_node=size)
        plan = msgspec.structs.replace(
            plan, group=group, cluster=cluster, microbatch_size=own * data
        )
    training = msgspec.structs.replace(plan.training, zero1=one.zero1 or two.zero1)
    return msgspec.structs.replace(plan, training=training)
