"""What actions, sends and syncs take, in arrays by kind of action."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from autopart.simulator.actions import Actions, Array, B, F, I, W

Time = Any
"""Seconds: a float, or a numpy array of them, one for each of several partitions."""


class StageCosts(Protocol):
    """What the simulator reads of a stage, as StagePrediction has it; seconds.

    The time of recomputation is part of `backward_time`; in a split backward it falls to I, and so does
    `split_time`, what splitting adds to the forward too: less than a forward that ends later by it.
    """

    @property
    def forward_time(self) -> Time: ...
    @property
    def backward_time(self) -> Time: ...
    @property
    def weight_grad_time(self) -> Time: ...
    @property
    def split_time(self) -> Time: ...
    @property
    def send_time(self) -> Time: ...
    @property
    def send_back_time(self) -> Time: ...
    @property
    def update_time(self) -> Time: ...


class StageTimes(NamedTuple):
    """The times of one stage that `step_times` needs: those of StagePrediction, as arrays."""

    forward_time: Time
    backward_time: Time
    send_time: Time
    send_back_time: Time
    update_time: Time
    weight_grad_time: Time = 0.0
    """The part of the backward that W runs; asked for where backwards are split."""
    split_time: Time = 0.0
    """What splitting adds to I."""


class SyncTime(NamedTuple):
    """A gradient sync whose time may be an array."""

    ranks: tuple[int, ...]
    time: Time


class KindCosts(NamedTuple):
    """Seconds by kind of action: shape (kinds,), or (kinds, partitions)."""

    compute: Array
    """With the fixed cost of an action."""
    moving: Array
    """Of the send of its result; 0 for W."""


def action_time(stage: StageCosts, op: int) -> Time:
    """Seconds of an action of a stage, without its fixed cost; `op` is one of F, B, I and W."""
    whole, half = stage.backward_time, stage.weight_grad_time
    rest = whole - half + stage.split_time
    return {F: stage.forward_time, B: whole, I: rest, W: half}[op]


def kind_costs(stages: Sequence[StageCosts], action_overhead: float) -> KindCosts:
    """The costs of F, B, I and W of each stage, in the order of their kinds."""
    compute: list[Time] = []
    moving: list[Time] = []
    for stage in stages:
        compute += [action_time(stage, op) + action_overhead for op in range(4)]
        back = stage.send_back_time
        moving += [stage.send_time, back, back, 0.0 * stage.backward_time]
    return KindCosts(
        np.array(np.broadcast_arrays(*compute), dtype=float),
        np.array(np.broadcast_arrays(*moving), dtype=float),
    )


def time_to_result(actions: Actions, costs: KindCosts, *, sends_overlap: bool) -> Array:
    """Seconds from each action's start to its result: compute and, where sends do not overlap with it,
    the receive before; shape (actions, ...)."""
    time = costs.compute[actions.kind]
    if sends_overlap:
        return time
    received = np.flatnonzero(actions.need < actions.num_actions)
    time[received] += costs.moving[actions.kind[actions.need[received]]]
    return time
