"""Memory on each rank over time.

A microbatch's stash stays from when F starts until B ends. Where the backward is split, the bytes
that W needs stay until W ends. The bytes while an action runs depend on the order alone
(`schedules.in_flight`), and not on any time. Stash that is lent is left out while it is away; the
places that a rank keeps for others are constant.

Where GPUs share weights, an action gathers them as it starts and releases them as it ends. Of its workspace,
the bytes of whole weights, and of gradients that are whole or on their way, count apart.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.records.peak_bytes import StageBytes, lasting_bytes, sizes_of, workspace_of
from autopart.schedules.actions import StageRanks, first_backwards, paired_forwards
from autopart.schedules.encoding import OPS, B, F, I, IntArray, W
from autopart.schedules.in_flight import (
    ACTIVATIONS,
    FIRST,
    GRADIENTS,
    MADE,
    OUTPUTS,
    SENT,
    in_flight_at_each_action,
)
from autopart.simulator.costs import FloatArray, messages_of
from autopart.simulator.timeline import Timeline

_KINDS = ("stash", "workspace", "gathered", "reducing", "messages", "gradients")
"""The kinds of bytes that change, in the columns of events."""


class MemoryCurve(NamedTuple):
    """The bytes on one rank over time; arrays have one entry for each change."""

    times: FloatArray
    """Seconds since the step began at which the bytes change, in ascending order."""
    stash: IntArray
    """Stash bytes from each time on."""
    workspace: IntArray
    """Other transient bytes from each time on."""
    gathered: IntArray
    """Transient bytes of whole weights that the rank's GPUs share."""
    reducing: IntArray
    """Transient bytes of whole gradients that they share, and of gradients on their way."""
    messages: IntArray
    """Bytes for arriving messages, and for sent gradients and results that are not gone."""
    gradients: IntArray
    """Parameter gradients from each time on, where the step makes them; a first backward's workspace has its own."""
    constant: dict[str, int]
    """Bytes by kind that never change, over all stages on the rank; the reserve counts once."""

    @property
    def moving(self) -> IntArray:
        """Bytes that change within a step, from each time on."""
        transient = self.workspace + self.gathered + self.reducing
        return self.stash + transient + self.messages + self.gradients

    @property
    def peak_bytes(self) -> int:
        """The largest sum over all kinds at one time."""
        return int(self.moving.max(initial=0)) + sum(self.constant.values())


def memory_over_time(
    timeline: Timeline, ranks: StageRanks, stages: Sequence[StageBytes]
) -> tuple[MemoryCurve, ...]:
    """The bytes on every rank: stash, the running action's workspace, messages, gradients and constant bytes.

    `ranks` has the ranks for each stage, and `stages` their bytes.
    """
    rows = in_flight_at_each_action(timeline.actions, ranks)
    curves: list[MemoryCurve] = []
    for rank in range(len(timeline.actions.schedule)):
        own = [stage for stage, on in zip(stages, ranks, strict=True) if rank in on]
        events = (
            *_action_events(timeline, rank, stages, _counted(rows[rank], own)),
            _lending_events(timeline, rank, stages),
        )
        curves.append(_curve(np.concatenate(events), _constant(own)))
    return tuple(curves)


def _constant(own: Sequence[StageBytes]) -> dict[str, int]:
    return {
        **lasting_bytes(own),
        "reserve": max((stage.memory.reserve for stage in own), default=0),
    }


def _counted(rows: IntArray, own: Sequence[StageBytes]) -> IntArray:
    """Message bytes and gradients while each action on the rank runs, shape (actions, 2)."""
    sizes = [sizes_of(stage) for stage in own]
    none = np.zeros(len(rows), dtype=np.int64)
    messages = sum(
        rows[:, ACTIVATIONS, at] * of.activations
        + rows[:, GRADIENTS, at] * of.gradients
        + rows[:, SENT, at] * of.sent
        + rows[:, OUTPUTS, at] * of.outputs
        for at, of in enumerate(sizes)
    )
    made = sum(rows[:, MADE, at] * of.made for at, of in enumerate(sizes))
    return np.column_stack([none + messages, none + made])


def _action_events(
    timeline: Timeline, rank: int, stages: Sequence[StageBytes], counted: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Changes where the rank's actions start, and where they end, one row each.

    The columns are seconds, the turn among equal seconds, and changes in the kinds of `_KINDS`. The update frees the
    gradients.
    """
    first, stop = timeline.actions.first[rank : rank + 2]
    kinds = timeline.actions.kind[first:stop]
    # Step 1: the workspace of each action, and the stash that it takes at its start and frees at
    # its end.
    sizes = [sizes_of(stage) for stage in stages]
    room = np.array([workspace_of(of, op) for of in sizes for op in range(len(OPS))])[kinds]
    order = timeline.actions.schedule[rank]
    messages, made = counted.T
    after = made.copy()
    for at in first_backwards(order).values():
        if order[at].op == "B":
            own = sizes[order[at].stage]
            room[at] = workspace_of(own, FIRST)
            after[at] += own.made
    whole = _whole_bytes(stages, kinds, room)
    # In an overlapped pair the forward's time is the pair's, so both workspaces count there.
    forwards = np.array(paired_forwards(order), dtype=np.int64)
    for own_room in (room, *whole):
        own_room[forwards] += own_room[forwards + 1]
    gathered, reducing = whole
    rest = room - gathered - reducing
    freed = np.array(
        [
            {B: of.stash, I: of.stash - of.waiting, W: of.waiting}.get(op, 0)
            for of in sizes
            for op in range(len(OPS))
        ]
    )[kinds]
    taken = np.array([of.stash * (op == F) for of in sizes for op in range(len(OPS))])[kinds]
    starts = np.array(timeline.times.start[first:stop])
    ends = np.array(timeline.times.end[first:stop])
    # Step 2: at equal seconds, an action ends before the next one starts.
    turn = 2 * np.arange(len(kinds))
    # Step 3: new messages count from an action's start, and those that it used go at its end. So no sum between two
    # actions is above that of the next one. A first backward counts its own gradients until it ends.
    kept = np.minimum(messages, np.append(messages[1:], 0)) if len(messages) else messages
    more, left = messages - np.append(0, kept)[:-1], messages - kept
    before = np.concatenate([[0], after[:-1]])[: len(made)]
    return (
        np.column_stack(
            [starts, turn, taken, rest, gathered, reducing, more, made - before]
        ).astype(np.float64),
        np.column_stack(
            [ends, turn + 1, -freed, -rest, -gathered, -reducing, -left, after - made]
        ).astype(np.float64),
    )


def _whole_bytes(
    stages: Sequence[StageBytes], kinds: IntArray, room: IntArray
) -> tuple[IntArray, IntArray]:
    """The parts of each action's workspace `room` for whole weights, and for gradients: at most all of it."""
    of = [messages_of(stage.state, op) for stage in stages for op in OPS]
    gathered = np.minimum(np.array([own.gathered_bytes for own in of])[kinds], room)
    reducing = np.minimum(np.array([own.reducing_bytes for own in of])[kinds], room - gathered)
    return gathered, reducing


def _lending_events(timeline: Timeline, rank: int, stages: Sequence[StageBytes]) -> FloatArray:
    """Changes where stash of the rank goes to another rank, and where it has its room again.

    It goes once its move and the action beside it are over, as `in_flight` counts it.
    """
    first = timeline.actions.first[rank]
    rows: list[tuple[float, ...]] = []
    others = [0] * (len(_KINDS) - 1)
    for mover, action, beside in timeline.actions.moves:
        if mover != rank:
            continue
        start, end = timeline.times.moves[beside]
        turn, stash = 2 * (beside - first), stages[action.stage].stash_bytes
        if action.op == "L":
            gone = max(end, timeline.times.end[beside])
            rows.append((gone, turn + 1.5, -stash, *others))
        else:
            rows.append((start, turn - 0.5, stash, *others))
    return np.array(rows, dtype=np.float64).reshape(-1, 2 + len(_KINDS))


def _curve(events: FloatArray, constant: dict[str, int]) -> MemoryCurve:
    # Sort by seconds, then by turn, and add the changes up.
    order = np.lexsort((events[:, 1], events[:, 0]))
    changes = np.cumsum(events[order, 2:], axis=0).astype(np.int64)
    kinds = dict(zip(_KINDS, changes.T, strict=True))
    return MemoryCurve(times=events[order, 0], constant=constant, **kinds)
