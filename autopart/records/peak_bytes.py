"""A rank's peak bytes, from counts and sizes: microbatches, messages and one running action.

The counts come from the orders (schedules/in_flight.py). The sizes are whole numbers, arrays with an
entry for each partition, or affine expressions.
"""

import functools
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from autopart.records.prediction import (
    LASTING,
    REPEATED,
    MemoryUse,
    MovingBytes,
    RepeatedBytes,
    StateActions,
)
from autopart.schedules.encoding import OPS, B, I, W
from autopart.schedules.in_flight import (
    ACTIVATIONS,
    FIRST,
    GRADIENTS,
    MADE,
    OUTPUTS,
    SENT,
    STASH,
    WAITING,
    InFlight,
)
from autopart.units import Q

Array = npt.NDArray[Any]

EXACT = 2**53
"""Whole numbers below this are exact as floats."""


class MicrobatchBytes(NamedTuple, Generic[Q]):
    """A stage's bytes that change within a step, for one microbatch."""

    stash: Q
    """Bytes from F to B, or from F to I."""
    waiting: Q
    """Bytes from I to W, where the backward is split."""
    activations: Q
    """Activation bytes that the stage receives."""
    gradients: Q
    """Gradient bytes that the stage receives."""
    sent: Q
    """Gradient bytes that the stage sends."""
    workspace: Q
    """Transient bytes in F and in B."""
    input_grad_workspace: Q
    """Transient bytes in I."""
    weight_grad_workspace: Q
    """Transient bytes in W."""
    outputs: Q
    """Result bytes that the stage sends and does not keep."""
    made: Q
    """Parameter gradients, where they do not exist before the first backward; else 0."""
    first_backward: Q
    """Transient bytes in the first backward, with the parameter gradients that it has made so far."""


def by_kind(own: MicrobatchBytes[Q]) -> tuple[Q, ...]:
    """The bytes for each of the counted `KINDS`, in their order."""
    return (
        own.stash,
        own.waiting,
        own.activations,
        own.gradients,
        own.made,
        own.sent,
        own.outputs,
    )


class StageBytes(Protocol):
    """The fields that are read from a plan's stage, as StagePrediction has them."""

    @property
    def stash_bytes(self) -> int: ...
    @property
    def moving(self) -> MovingBytes: ...
    @property
    def memory(self) -> MemoryUse: ...
    @property
    def repeated(self) -> RepeatedBytes | msgspec.UnsetType: ...
    @property
    def state(self) -> StateActions | msgspec.UnsetType: ...


def sizes_of(stage: StageBytes) -> MicrobatchBytes[int]:
    """One stage's sizes, as its plan predicts them, without what other stages on its ranks have."""
    own = MicrobatchBytes(stage.stash_bytes, **msgspec.structs.asdict(stage.moving))
    if stage.repeated is msgspec.UNSET:
        return own
    own = own._replace(stash=own.stash - stage.repeated.stash)
    if not own.made:
        return own
    made = own.made - stage.repeated.gradients
    return own._replace(made=made, first_backward=own.workspace + made)


def lasting_bytes(own: Sequence[StageBytes]) -> dict[str, int]:
    """Bytes by kind that do not change within a step, on a rank with these stages: a tied parameter once.

    Gradients are among them where they exist before the first backward too.
    """
    found = {kind: sum(getattr(stage.memory, kind) for stage in own) for kind in LASTING}
    for stage in own:
        if stage.repeated is not msgspec.UNSET:
            found |= {kind: found[kind] - getattr(stage.repeated, kind) for kind in REPEATED}
        if stage.moving.made:
            again = 0 if stage.repeated is msgspec.UNSET else stage.repeated.gradients
            found["gradients"] -= stage.memory.gradients - again
    return found


class Peak(NamedTuple, Generic[Q]):
    """Bytes at one place in a rank's order, over all its stages."""

    stash: Q
    workspace: Q
    receives: Q
    sends: Q
    gradients: Q
    """Parameter gradients, where they are made within the step."""


def at_peak(in_flight: InFlight, sizes: Sequence[MicrobatchBytes[Q]]) -> Peak[Q]:
    """The bytes where their sum is largest; `sizes` has one entry per stage on the rank."""
    running = [*zip(*(each.tolist() for each in in_flight[1:4]), strict=True)]
    rows = [*zip(running, in_flight.counts.tolist(), strict=True)]
    first = _bytes_at(rows[0][1], sizes, *rows[0][0])
    if len({(*runs, *map(tuple, counts[:SENT])) for runs, counts in rows}) == 1:
        # Places that differ in what is sent alone, as under GPipe and 1F1B, share all other bytes.
        return first._replace(
            sends=functools.reduce(
                _largest, [first.sends, *(_sends(own, sizes) for _, own in rows[1:])]
            )
        )
    peaks = [_bytes_at(counts, sizes, *runs) for runs, counts in rows[1:]]
    return functools.reduce(_larger, peaks, first)


def place_of_peak(in_flight: InFlight, sizes: Sequence[MicrobatchBytes[int]]) -> int:
    """The first place of `at_peak`, for sizes that are numbers."""
    return int(np.argmax(bytes_at_places(in_flight, sizes)[:, 0]))


def bytes_at_places(in_flight: InFlight, sizes: Sequence[MicrobatchBytes[Any]]) -> Array:
    """The bytes at all places, shape (places, partitions); sizes are numbers, or arrays with one dimension."""
    kinds = [by_kind(own) for own in sizes]
    moving = np.array([[np.atleast_1d(each) for each in own] for own in kinds]).swapaxes(0, 1)
    counts = in_flight.counts.reshape(len(in_flight.op), -1)
    work = np.array(
        [[np.atleast_1d(workspace_of(own, op)) for op in range(len(OPS) + 1)] for own in sizes]
    )
    found = summed_bytes(counts, moving.reshape(counts.shape[1], -1))
    found += work[in_flight.column, in_flight.op]
    pairs = in_flight.beside >= 0
    found[pairs] += work[in_flight.beside[pairs], B]
    return found


def summed_bytes(counts: Array, sizes: Array) -> Array:
    """The product of two matrices of whole numbers, counts and bytes."""
    most = int(counts.sum(axis=1).max(initial=0)) * int(sizes.max(initial=0))
    if most < EXACT:
        # Floats hold such sums exactly, and their products are ten times as fast.
        return (counts.astype(np.float64) @ sizes.astype(np.float64)).astype(np.int64)
    return counts @ sizes


def _bytes_at(
    counts: Sequence[Sequence[int]],
    sizes: Sequence[MicrobatchBytes[Q]],
    column: int,
    op: int,
    beside: int,
) -> Peak[Q]:
    """The bytes at one place, where the stage at `column` runs an action.

    The stage at `beside`, if not -1, runs a backward beside it.
    """
    workspace = workspace_of(sizes[column], op)
    if beside >= 0:
        workspace = workspace + workspace_of(sizes[beside], B)
    whole = _summed(counts[STASH], [stage.stash for stage in sizes])
    waiting = _summed(counts[WAITING], [stage.waiting for stage in sizes])
    activations = _summed(counts[ACTIVATIONS], [stage.activations for stage in sizes])
    gradients = _summed(counts[GRADIENTS], [stage.gradients for stage in sizes])
    return Peak(
        stash=whole + waiting,
        workspace=workspace,
        receives=activations + gradients,
        sends=_sends(counts, sizes),
        gradients=_summed(counts[MADE], [stage.made for stage in sizes]),
    )


def _sends(counts: Sequence[Sequence[int]], sizes: Sequence[MicrobatchBytes[Q]]) -> Q:
    """The bytes of gradients and results that are under way at one place."""
    total: Any = _summed(counts[SENT], [stage.sent for stage in sizes])
    return total + _summed(counts[OUTPUTS], [stage.outputs for stage in sizes])


def _summed(counts: Sequence[int], sizes: Sequence[Q]) -> Q:
    """The sum over the rank's stages: count times size."""
    total: Any = sum(count * size for count, size in zip(counts, sizes, strict=True))
    return total


def _largest(one: Q, other: Q) -> Q:
    """The larger one; for arrays entry by entry."""
    both: Any = (one, other)
    return max(both) if np.ndim(both[0]) == 0 else np.maximum(*both)


def _larger(one: Peak[Q], other: Peak[Q]) -> Peak[Q]:
    """The peak with the larger sum; for arrays entry by entry."""
    sums: list[Any] = [sum(one), sum(other)]
    more = sums[1] > sums[0]
    if np.ndim(more) == 0:
        return other if more else one
    pairs: list[tuple[Any, Any]] = list(zip(one, other, strict=True))
    return Peak(*(np.where(more, b, a) for a, b in pairs))


def workspace_of(stage: MicrobatchBytes[Q], op: int) -> Q:
    """Transient bytes during an action; `op` is F, B, I or W as a number, or `FIRST`."""
    if op == FIRST:
        return stage.first_backward
    if op == I:
        return stage.input_grad_workspace
    return stage.weight_grad_workspace if op == W else stage.workspace
