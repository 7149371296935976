"""Seconds for actions, sends and syncs, as arrays over the kinds of action."""

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from autopart.records.prediction import StateActions, StateMessages
from autopart.schedules.encoding import Actions, B, F, I, W

FloatArray = npt.NDArray[np.float64]
"""Seconds."""

Time = float | FloatArray
"""Seconds: a number, or an array over several partitions."""

T = TypeVar("T", bound=Time)
T_co = TypeVar("T_co", bound=Time, covariant=True)


class StageCosts(Protocol[T_co]):
    """One stage's seconds, as the simulator reads them. `StagePrediction` has them.

    `backward_time` includes recomputing, and so does I in a split backward. I also takes the whole
    `split_time`, although splitting makes the forward longer too. The next stage thus starts
    earlier than it would after the longer forward: the simulator understates this wait.
    """

    @property
    def forward_time(self) -> T_co: ...
    @property
    def backward_time(self) -> T_co: ...
    @property
    def weight_grad_time(self) -> T_co | float: ...
    @property
    def split_time(self) -> T_co | float: ...
    @property
    def send_time(self) -> T_co: ...
    @property
    def send_back_time(self) -> T_co: ...
    @property
    def update_time(self) -> T_co: ...
    @property
    def pair_saving(self) -> T_co | float | msgspec.UnsetType: ...
    @property
    def lend_time(self) -> T_co | float | msgspec.UnsetType: ...


class PartTimes(Protocol[T_co]):
    """The parts of a stage's sync in seconds. `SyncParts` in a plan's prediction has them."""

    @property
    def stage(self) -> int: ...
    @property
    def early_time(self) -> T_co | float: ...
    @property
    def after_backward(self) -> T_co | float: ...
    @property
    def after_weights(self) -> T_co | float: ...
    @property
    def slows_backward(self) -> T_co | float: ...
    @property
    def slows_weights(self) -> T_co | float: ...
    @property
    def late_time(self) -> T_co | None: ...
    @property
    def gather_wait(self) -> T_co | float: ...


class StageTimes(NamedTuple, Generic[T]):
    """One stage's seconds for `step_times`: numbers, or arrays over partitions."""

    forward_time: T
    backward_time: T
    send_time: T
    send_back_time: T
    update_time: T
    weight_grad_time: T | float = 0.0
    """Backward seconds that W takes; read only where backwards are split."""
    split_time: T | float = 0.0
    """Seconds that splitting adds to I."""
    pair_saving: T | float = 0.0
    """Seconds by which F beside B takes less than both in turn; read only where pairs overlap."""
    lend_time: T | float | msgspec.UnsetType = msgspec.UNSET
    """Seconds that L and T take; unset where the stage lends no stash."""


class SyncTime(NamedTuple, Generic[T]):
    """A gradient sync: its ranks, and its seconds as a number or an array over partitions."""

    ranks: tuple[int, ...]
    time: T
    parts: PartTimes[T] | None = None
    """Its parts; None where the whole sync follows all actions of its ranks."""


class KindCosts(NamedTuple):
    """Seconds by kind of action, shape (kinds,) or (kinds, partitions)."""

    compute: FloatArray
    """Compute seconds, with each action's fixed cost.

    Behind the kinds of action stand the kinds of overlapped pairs, and a last row of 0.
    """
    moving: FloatArray
    """Send seconds for the result; 0 for W, which sends nothing."""
    lending: Mapping[int, Time]
    """By stage that lends stash, the seconds that one L or T takes."""


_MESSAGES = {"F": "forward", "B": "backward", "I": "input_grad", "W": "weight_grad"}


def messages_of(state: StateActions | msgspec.UnsetType, op: str) -> StateMessages:
    """The gathers and reductions of one kind of action on a stage; none without sharded state."""
    return getattr(state, _MESSAGES[op]) if isinstance(state, StateActions) else StateMessages()


def exposed_seconds(own: StateMessages) -> float:
    """Seconds of gathers and reductions that compute does not hide."""
    return own.exposed_gather_time + own.exposed_reduction_time


def action_time(stage: StageCosts[Time], op: int) -> Time:
    """Seconds for one action without its fixed cost; `op` is F, B, I or W as a number."""
    whole, weights = stage.backward_time, stage.weight_grad_time
    rest = whole - weights + stage.split_time
    return {F: stage.forward_time, B: whole, I: rest, W: weights}[op]


def pair_time(forward: StageCosts[Time], backward: StageCosts[Time]) -> Time:
    """Seconds for F of one stage beside B of another stage or the same, without fixed costs.

    Both in turn, less the smaller of their savings: the smaller stage hides no more than its own.
    """
    return (
        forward.forward_time
        + backward.backward_time
        - np.minimum(_saving(forward), _saving(backward))
    )


def _saving(stage: StageCosts[Time]) -> Time:
    """What a stage saves in an overlapped pair; 0 where its profile has no pair times."""
    own = stage.pair_saving
    return 0.0 if isinstance(own, msgspec.UnsetType) else own


def kind_costs(
    stages: Sequence[StageCosts[Time]],
    action_overhead: float,
    pair_kinds: Sequence[tuple[int, int]] = (),
) -> KindCosts:
    """The seconds for F, B, I and W on each stage, ordered by kind, and for kinds of pairs.

    A pair has the fixed costs of both its actions.
    """
    compute: list[Time] = []
    moving: list[Time] = []
    for stage in stages:
        compute += [action_time(stage, op) + action_overhead for op in range(4)]
        back = stage.send_back_time
        # The 0 for W has the shape of the backward: a number, or an array over partitions.
        moving += [stage.send_time, back, back, 0.0 * stage.backward_time]
    for forward, backward in pair_kinds:
        compute.append(pair_time(stages[forward], stages[backward]) + 2 * action_overhead)
    compute += [0.0 * stages[0].backward_time] * bool(pair_kinds)
    return KindCosts(
        np.array(np.broadcast_arrays(*compute), dtype=float),
        np.array(np.broadcast_arrays(*moving), dtype=float),
        {
            at: stage.lend_time
            for at, stage in enumerate(stages)
            if not isinstance(stage.lend_time, msgspec.UnsetType)
        },
    )


def time_to_result(actions: Actions, costs: KindCosts, *, sends_overlap: bool) -> FloatArray:
    """Seconds from each action's start to its result, shape (actions, ...).

    This is compute, and the receive before it where sends do not overlap compute. An overlapped
    pair's forward takes all that the pair takes.
    """
    time = costs.compute[actions.row]
    if sends_overlap:
        return time
    received = np.flatnonzero(actions.need < actions.num_actions)
    at = np.arange(actions.num_actions)
    at[actions.pairs + 1] = actions.pairs
    np.add.at(time, at[received], costs.moving[actions.kind[actions.need[received]]])
    return time
