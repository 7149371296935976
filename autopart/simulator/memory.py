"""What a rank holds over time.

A microbatch's stash is there from the start of its F to the end of its B. Where the backward is
split, what W needs stays from the end of I to the end of W. How much there is while each action runs
depends on the order alone (simulator/holding.py), not on any time, except for what is on the host.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.plan import LASTING
from autopart.schedule import StageRanks
from autopart.simulator.actions import OPS, Array, B, F, I, W
from autopart.simulator.clock import HostMove
from autopart.simulator.contention import HostTraffic
from autopart.simulator.holding import (
    ACTIVATIONS,
    GRADIENTS,
    SENT,
    StageBytes,
    every_row,
    sizes_of,
    workspace_of,
)
from autopart.simulator.timeline import Timeline


class MemoryCurve(NamedTuple):
    """The bytes of one rank over time."""

    times: Array
    """Seconds from the start of the step, rising; what is held changes there."""
    stash: Array
    """Bytes from each of the times on."""
    workspace: Array
    messages: Array
    """Room for what arrives, and gradients that are not gone."""
    constant: dict[str, int]
    """Bytes of the other kinds; over all stages of the rank, the reserve once."""

    @property
    def peak_bytes(self) -> int:
        """The most that the rank holds at once, of all kinds together."""
        moving = int((self.stash + self.workspace + self.messages).max(initial=0))
        return moving + sum(self.constant.values())


def memory_over_time(
    timeline: Timeline,
    ranks: StageRanks,
    stages: Sequence[StageBytes],
    *,
    host: Sequence[HostTraffic] | None = None,
) -> tuple[MemoryCurve, ...]:
    """The bytes of every rank: stash as its microbatches come and go, the workspace of the stage whose
    action runs, messages, and what does not change. `host` is as in `simulate`."""
    rows = every_row(timeline.actions.schedule, ranks)
    moved: dict[int, list[HostMove]] = {}
    for move in timeline.times.host_moves:
        moved.setdefault(move.rank, []).append(move)
    curves: list[MemoryCurve] = []
    for rank in range(len(timeline.actions.schedule)):
        own = [stage for stage, on in zip(stages, ranks, strict=True) if rank in on]
        events = [*_action_events(timeline, rank, stages, _messages(rows[rank], own))]
        for move in moved.get(rank, []):
            assert host is not None
            events.append(_host_event(timeline, move, host))
        curves.append(_curve(np.concatenate(events), _constant(own)))
    return tuple(curves)


def _constant(own: Sequence[StageBytes]) -> dict[str, int]:
    held = {kind: sum(getattr(stage.memory, kind) for stage in own) for kind in LASTING}
    return {**held, "reserve": max((stage.memory.reserve for stage in own), default=0)}


def _messages(rows: Array, own: Sequence[StageBytes]) -> Array:
    """Bytes of messages while each action of a rank runs."""
    sizes = [sizes_of(stage) for stage in own]
    return sum(
        rows[:, ACTIVATIONS, at] * of.activations
        + rows[:, GRADIENTS, at] * of.gradients
        + rows[:, SENT, at] * of.sent
        for at, of in enumerate(sizes)
    ) + np.zeros(len(rows), dtype=np.int64)


def _action_events(
    timeline: Timeline, rank: int, stages: Sequence[StageBytes], messages: Array
) -> tuple[Array, Array]:
    """Rows of (time, turn on an equal time, change of stash, of workspace, of messages): the starts of
    a rank's actions, and their ends."""
    first, stop = timeline.actions.first[rank : rank + 2]
    kinds = timeline.actions.kind[first:stop]
    sizes = [sizes_of(stage) for stage in stages]
    room = np.array([workspace_of(of, op) for of in sizes for op in range(len(OPS))])[kinds]
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
    turn = 2 * np.arange(len(kinds))
    more = np.diff(messages, prepend=0)
    none = np.zeros_like(more)
    none[-1:] = messages[-1:]
    return (
        np.column_stack([starts, turn, taken, room, more]),
        np.column_stack([ends, turn + 1, -freed, -room, -none]),
    )


def _host_event(timeline: Timeline, move: HostMove, host: Sequence[HostTraffic]) -> Array:
    stage, op = divmod(int(timeline.actions.kind[move.action]), 4)
    size = host[stage].num_bytes
    # Leaving, the bytes are held until they have left; coming back, they need their place at once.
    row = [move.end, -1.0, -size, 0.0, 0.0] if op == F else [move.start, np.inf, size, 0.0, 0.0]
    return np.array([row])


def _curve(events: Array, constant: dict[str, int]) -> MemoryCurve:
    order = np.lexsort((events[:, 1], events[:, 0]))
    changes = np.cumsum(events[order, 2:], axis=0).astype(np.int64)
    stash, workspace, messages = changes.T
    return MemoryCurve(events[order, 0], stash, workspace, messages, constant)
