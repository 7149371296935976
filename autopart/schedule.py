"""Schedules as plain data: one order of actions for each rank.

An action prints and parses as torch's own letters, `2F0`: stage 2, forward, microbatch 0.
Microbatch m of a stage with r ranks runs on the rank m mod r of that stage, so replicas take
turns and a schedule without replicas is the case r = 1. A rank may run several stages.

Needs of an action, all but the first on its own rank where stages of a rank hand over:

    F of stage s    F of stage s - 1, unless s is the first of a pipeline
    B or I of s     F of s, and B or I of stage s + 1, unless s is the last of a pipeline
    W of s          I of s

A microbatch has on each stage either B, or both I and W.
"""

import itertools
import math
import operator
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from autopart.errors import ScheduleError

Op = Literal["F", "B", "I", "W"]


class Action(NamedTuple):
    """One operation of one stage on one microbatch: F forward, B whole backward, or its halves
    I (gradient of the input) and W (gradient of the weights)."""

    stage: int
    op: Op
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.op}{self.microbatch}"


Order = tuple[Action, ...]
Schedule = tuple[Order, ...]
"""The order of each rank, ranks counted from 0; an idle rank's order is empty."""

StageRanks = Sequence[Sequence[int]]

_ACTION = re.compile(r"([0-9]+)([FBIW])([0-9]+)")


def parse_action(text: str) -> Action:
    """Read `2F0`; raises ScheduleError on anything else."""
    match = _ACTION.fullmatch(text)
    if match is None:
        raise ScheduleError(
            f"'{text}' is not an action; write stage, one of F B I W, microbatch: 2F0"
        )
    return Action(int(match[1]), match[2], int(match[3]))  # pyright: ignore[reportArgumentType]


def parse_order(text: str) -> Order:
    """Read actions separated by spaces: `0F0 0F1 0B0 0B1`."""
    return tuple(parse_action(word) for word in text.split())


def format_order(order: Order) -> str:
    """The reverse of `parse_order`."""
    return " ".join(map(str, order))


def warmup(stage_ranks: StageRanks, stage: int) -> int:
    """Forwards of a rank of `stage` before its first backward in 1F1B: what keeps every rank from
    there to the end fed, ceil(ranks from the stage on / ranks of the stage) (NOAM of Narayanan et al.,
    PipeDream, SOSP 2019); k - s where all of k stages have as many ranks."""
    behind = sum(len(ranks) for ranks in stage_ranks[stage:])
    return math.ceil(behind / len(stage_ranks[stage]))


def dealt(ranks: Sequence[int], rank: int, num_microbatches: int) -> range:
    """The microbatches that `rank` runs of a stage on `ranks`."""
    return range(ranks.index(rank), num_microbatches, len(ranks))


def rank_of(ranks: Sequence[int], microbatch: int) -> int:
    """The rank that runs `microbatch` of a stage on `ranks`."""
    return ranks[microbatch % len(ranks)]


def predecessors(
    action: Action,
    num_stages: int,
    backwards: Iterable[Op] = ("B",),
    pipeline_starts: Sequence[int] = (0,),
) -> list[Action]:
    """The actions whose results `action` needs: those that the schedule has of them, where
    `backwards` says how backwards begin in it, whole (B), in halves (I), or either."""
    stage, op, m = action
    if op == "F":
        return [] if stage in pipeline_starts else [Action(stage - 1, "F", m)]
    if op == "W":
        return [Action(stage, "I", m)]
    last = stage + 1 in (*pipeline_starts, num_stages)
    behind = [] if last else [Action(stage + 1, half, m) for half in backwards]
    return [Action(stage, "F", m), *behind]


def check_schedule(
    schedule: Schedule,
    stage_ranks: StageRanks,
    num_microbatches: int,
    pipeline_starts: Sequence[int] = (0,),
) -> None:
    """Raise ScheduleError, naming the action, unless every stage runs every microbatch once, on the
    rank it is dealt to, with a whole backward or both halves, and nothing waits in a circle.

    `pipeline_starts` are the stages that are the first of a pipeline: (0,), or (0, k) where stages k
    and on are a second pipeline; each microbatch then runs through one of them.

    What passes can also run with sends that block until they are received: the actions have an
    order of all ranks together in which each comes after what it needs, and there a receive can
    stand right behind its send.
    """
    table = _Table(schedule, stage_ranks, num_microbatches, pipeline_starts)
    table.refuse_doubles()
    table.refuse_missing()
    table.refuse_foreign()
    _refuse_circles(schedule, table)


_CODE = np.full(256, -1)
_CODE[[ord(op) for op in "FBIW"]] = range(4)
_PHASE = np.array([0, 1, 1, 2])
"""B and I stand in one place: they are what the stage ahead waits for."""
Array = Any
"""A numpy array."""


class _Table:
    """The actions of a schedule as arrays, one entry each, rank after rank."""

    def __init__(
        self,
        schedule: Schedule,
        stage_ranks: StageRanks,
        num_microbatches: int,
        pipeline_starts: Sequence[int],
    ) -> None:
        self.actions = list(itertools.chain.from_iterable(schedule))
        count = len(self.actions)
        self.rank = np.repeat(np.arange(len(schedule)), [len(order) for order in schedule])
        self.stage = np.fromiter(map(operator.itemgetter(0), self.actions), np.int64, count)
        letters = "".join(map(operator.itemgetter(1), self.actions)).encode()
        self.op = _CODE[np.frombuffer(letters, np.uint8)]
        self.microbatch = np.fromiter(map(operator.itemgetter(2), self.actions), np.int64, count)
        self.shape = (len(stage_ranks), num_microbatches)
        self.starts = pipeline_starts
        turns = np.arange(num_microbatches)
        self.owner = np.array([np.asarray(r)[turns % len(r)] for r in stage_ranks])
        self.known = (self.stage < self.shape[0]) & (self.microbatch < num_microbatches)
        where = (self.stage[self.known] * num_microbatches + self.microbatch[self.known]) * 4
        times = np.bincount(where + self.op[self.known], minlength=4 * self.owner.size)
        self.times = times.reshape(*self.shape, 4)

    def place(self, at: int) -> str:
        return f"rank {self.rank[at]} runs {self.actions[at]}"

    def refuse_doubles(self) -> None:
        if self.times.max(initial=0) < 2:
            return
        seen: set[tuple[int, Action]] = set()
        for rank, action in zip(self.rank.tolist(), self.actions, strict=True):
            if (rank, action) in seen:
                raise ScheduleError(f"rank {rank} runs {action} twice")
            seen.add((rank, action))

    def refuse_missing(self) -> None:
        own = self.known.copy()
        stage, microbatch = self.stage[own], self.microbatch[own]
        own[own] = self.owner[stage, microbatch] == self.rank[own]
        there = np.zeros((*self.shape, 4), dtype=bool)
        there[self.stage[own], self.microbatch[own], self.op[own]] = True
        forward, whole, half, weights = (there[..., op] for op in range(4))
        wanted = self._wanted(there)
        both = whole & (half | weights)
        for lacks, op in (
            (wanted & ~forward, "F"),
            (wanted & ~(whole | half | weights), "B"),
            (wanted & ~whole & ~half, "I"),
            (wanted & ~whole & ~weights, "W"),
        ):
            for stage, microbatch in np.argwhere(lacks)[:1]:
                rank = self.owner[stage, microbatch]
                raise ScheduleError(f"rank {rank} never runs {stage}{op}{microbatch}")
        for stage, microbatch in np.argwhere(both)[:1]:
            other = "I" if half[stage, microbatch] else "W"
            raise ScheduleError(
                f"rank {self.owner[stage, microbatch]} runs {stage}B{microbatch} and "
                f"{stage}{other}{microbatch}; a backward is whole or in halves"
            )

    def _wanted(self, there: Array) -> Array:
        """Whether a stage is to run a microbatch: where there are several pipelines, if the
        microbatch shows up in that pipeline, or in none and this is the first."""
        bounds = (*self.starts, self.shape[0])
        parts = list(itertools.pairwise(bounds))
        shows = np.array([there[a:b].any(axis=(0, 2)) for a, b in parts])
        for microbatch in np.flatnonzero(shows.sum(axis=0) > 1)[:1]:
            first, second = (self.starts[p] for p in np.flatnonzero(shows[:, microbatch])[:2])
            raise ScheduleError(
                f"microbatch {microbatch} runs through two pipelines, from stage {first} and from "
                f"stage {second}"
            )
        shows[0] |= ~shows.any(axis=0)
        return np.repeat(shows, [b - a for a, b in parts], axis=0)

    def refuse_foreign(self) -> None:
        foreign = ~self.known
        stage, microbatch = self.stage[self.known], self.microbatch[self.known]
        foreign[self.known] = self.owner[stage, microbatch] != self.rank[self.known]
        for at in np.flatnonzero(foreign)[:1]:
            raise ScheduleError(f"{self.place(at)}, which is not its own")

    def awaited(self) -> Array:
        """For each action of a complete schedule the action of another rank that it awaits; the
        number of actions where it awaits none, one more where it stands before what it needs of
        its own rank."""
        count = len(self.actions)
        here, free, never = np.arange(count), count, count + 1
        at = np.full((self.shape[0], 3, self.shape[1]), never)
        at[self.stage, _PHASE[self.op], self.microbatch] = here
        ends = np.zeros(self.shape[0] + 1, dtype=bool)
        ends[[*self.starts, self.shape[0]]] = True
        before = np.full(count, free)
        forward = (self.op == 0) & ~ends[self.stage]
        before[forward] = at[self.stage[forward] - 1, 0, self.microbatch[forward]]
        backward = ((self.op == 1) | (self.op == 2)) & ~ends[self.stage + 1]
        before[backward] = at[self.stage[backward] + 1, 1, self.microbatch[backward]]
        later = self.op > 0
        own = np.full(count, -1)
        own[later] = at[self.stage[later], _PHASE[self.op[later]] - 1, self.microbatch[later]]
        local = np.append(self.rank, [-1, -1])[before] == self.rank
        before[local] = np.where(before[local] < here[local], free, never)
        before[own > here] = never
        return before


def _refuse_circles(schedule: Schedule, table: _Table) -> None:
    awaited = table.awaited().tolist()
    count = len(awaited)
    done = [False] * count + [True, False]
    first = [0, *itertools.accumulate(map(len, schedule))]
    at, stops = first[:-1], first[1:]
    sleeper: dict[int, int] = {}
    ready = list(range(len(schedule)))
    while ready:
        rank = ready.pop()
        for i in range(at[rank], stops[rank]):
            if not done[awaited[i]]:
                sleeper[awaited[i]] = rank
                at[rank] = i
                break
            done[i] = True
            if i in sleeper:
                ready.append(sleeper.pop(i))
        else:
            at[rank] = stops[rank]
    stuck = [
        f"rank {r} on {table.actions[i]}"
        for r, (i, stop) in enumerate(zip(at, stops, strict=True))
        if i < stop
    ]
    if stuck:
        raise ScheduleError(f"the schedule deadlocks: {', '.join(stuck)}")
