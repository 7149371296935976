"""Stages with a replica count each between downsets of a graph, for loads that add up over layers.

Symbols   D       a state: a downset of the graph;  D ⊂ D' is a cover where D' has one layer more
          c       a choice, with a key: the busy time of the stage D' - D is key_c(D') - key_c(D)
          T, G    a bottleneck, and the fewest machines behind a state: solvers/replication/dual.py

Where states are few, all pairs are looked at as one boolean matrix (`PairLoads`). Where they are many
(`LevelProbe`), a second recurrence along covers does instead, since busy times are differences: for
m machines behind and choice c,

    W(m, c, D) = min { key_c(D') :  D ⊊ D',  G(D') <= m,  D' may end a stage under c }
               = min over covers D'' of D of  min( W(m, c, D''), key_c(D'') if G(D'') <= m and ... )
    G(D)       = min { c's machines + m :  W(m, c, D) - key_c(D) <= T,  D may start a stage under c }

which is exact, since every D' ⊋ D contains a cover of D. It goes level by level, larger downsets first:
O(covers n²) for one T, instead of O(pairs n).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from autopart.solvers.replication.dual import TOLERANCE, Flags, Floats, Ints, Stage

MOST_STATES = 300_000
"""Downsets up to which all of them are looked at."""
MOST_SPANNING_LAYERS = 1500
"""Layers up to which the irreducible downsets are looked at, two for each."""
MOST_PAIRED_STATES = 1500
"""States up to which all pairs are looked at."""


class States(NamedTuple):
    """Downsets, each behind those inside it, the empty one first, all layers last."""

    masks: Sequence[int]
    """The bits of each one's layers."""
    tops: Sequence[int]
    """The bits of its layers that none of its layers reads."""
    grown: Sequence[tuple[int, int]] | None
    """For each but the first an earlier state and the layer, or the piece, that it has besides; None
    where these are just some downsets."""
    covers: tuple[Ints, Ints] | None
    """The states that one layer or piece leads out of, ascending, and into; None where some downsets
    of the layers or pieces are missing."""


class Choice(NamedTuple):
    """One way to run a stage, its load an array over states."""

    machines: int
    key: Floats
    first: Floats
    """The key of a stage that is the first one."""
    receive: Floats
    """Seconds that a stage from this state takes at least, unless it is the first one."""
    send: Floats
    """Seconds that a stage up to this state takes at least, unless it is the first one."""
    first_send: Floats
    """The same for the first stage."""


class Memory(NamedTuple):
    """Bytes that a stage keeps, in units of a microbatch in flight, and how many may be."""

    key: Floats
    """The stage keeps the difference of its two states."""
    limit: float


@dataclass(frozen=True, slots=True)
class Costs:
    """What stages between states cost."""

    choices: Sequence[Choice]
    work: Floats
    """A stage on q machines within T seconds holds at most q T of its difference."""
    memory: Memory | None = None

    @property
    def machines(self) -> Sequence[int]:
        """The machines that each choice takes."""
        return [choice.machines for choice in self.choices]

    @property
    def num_states(self) -> int:
        """N."""
        return len(self.work)

    def load(self, stage: Stage) -> float:
        """Seconds of one stage."""
        choice = self.choices[stage.choice]
        if stage.start == 0:
            key, around = choice.first, [choice.first_send[stage.end]]
        else:
            key, around = choice.key, [choice.receive[stage.start], choice.send[stage.end]]
        return float(max(key[stage.end] - key[stage.start], *around))

    def fits(self, stage: Stage, later: int) -> bool:
        """Whether a stage fits into memory with `later` machines behind it."""
        if self.memory is None:
            return True
        held = stashes(later, self.choices[stage.choice].machines)
        key = self.memory.key
        return bool(held * (key[stage.end] - key[stage.start]) <= self.memory.limit)

    def machines_ahead(self, limit: float) -> Ints:
        """Machines that everything ahead of each state needs at least within `limit` seconds."""
        if limit <= 0:
            return np.zeros(len(self.work), dtype=np.int64)
        # A sum of thousands of times may be off in its last digits; the bound must not be.
        return np.ceil(self.work / limit * (1 - 1e-12) - 1e-12).astype(np.int64)


def stashes(later: int, machines: int) -> int:
    """Microbatches that a stage on `machines` holds for the `later` ones behind it."""
    return -(-later // machines)


def downsets(before: Sequence[int], after: Sequence[int], most: int) -> States | None:
    """All downsets of a graph given by the bits of each layer's sources and readers; None where there
    are more than `most`. Covers are those of the inclusion order. O(covers · width) time."""
    follow = [[(1 << w, before[w]) for w in bits(readers)] for readers in after]
    masks, tops = [0], [0]
    grown: list[tuple[int, int]] = []
    ready = [sum(1 << v for v, sources in enumerate(before) if not sources)]
    parents: list[int] = []
    children: list[int] = []
    begin = 0
    while begin < len(masks):
        end = len(masks)
        known: dict[int, int] = {}
        for at in range(begin, end):
            if len(masks) > most:
                return None
            mask, can, top = masks[at], ready[at], tops[at]
            left = can
            while left:
                bit = left & -left
                left ^= bit
                larger = mask | bit
                child = known.get(larger)
                if child is None:
                    v = bit.bit_length() - 1
                    next_ready = can ^ bit
                    for reader, needs in follow[v]:
                        if needs & larger == needs:
                            next_ready |= reader
                    child = known[larger] = len(masks)
                    masks.append(larger)
                    tops.append(top & ~before[v] | bit)
                    grown.append((at, v))
                    ready.append(next_ready)
                parents.append(at)
                children.append(child)
        begin = end
    return States(masks, tops, grown, (np.array(parents), np.array(children)))


def prefixes(before: Sequence[int], order: Sequence[int]) -> States:
    """The downsets along one order of the layers."""
    masks, tops = [0], [0]
    for v in order:
        masks.append(masks[-1] | 1 << v)
        tops.append(tops[-1] & ~before[v] | 1 << v)
    return States(masks, tops, list(enumerate(order)), None)


def with_ahead(before: Sequence[int]) -> list[int]:
    """The bits of each layer and of all that is ahead of it."""
    found: list[int] = []
    for v, sources in enumerate(before):
        mask = 1 << v
        for u in bits(sources):
            mask |= found[u]
        found.append(mask)
    return found


def irreducibles(before: Sequence[int], after: Sequence[int], others: Sequence[int] = ()) -> States:
    """The downsets that a graph is spanned by, and others: for each layer it and all ahead of it, and
    all but it and what is behind it. Each has one layer that nothing of it reads, or lacks one that
    is ready: the cuts with the least to send are often among them."""
    everything = (1 << len(before)) - 1
    behind = [0] * len(before)
    for v in reversed(range(len(before))):
        behind[v] = 1 << v
        for w in bits(after[v]):
            behind[v] |= behind[w]
    found = {0, everything, *others, *with_ahead(before)}
    found.update(everything & ~mask for mask in behind)
    masks = sorted(found, key=lambda mask: (mask.bit_count(), mask))
    tops = [sum(1 << v for v in bits(mask) if not after[v] & mask) for mask in masks]
    return States(masks, tops, None, None)


def bits(mask: int) -> Iterator[int]:
    """The positions of the bits that are set, lowest first."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def unpack(masks: Sequence[int], width: int) -> Flags:
    """The lowest `width` bits of each mask, a row each."""
    size = -(-width // 8)
    joined = b"".join([mask.to_bytes(size, "little") for mask in masks])
    packed = np.frombuffer(joined, dtype=np.uint8).reshape(len(masks), size)
    return np.unpackbits(packed, axis=1, count=width, bitorder="little").view(np.bool_)


def nesting(states: States) -> Flags:
    """Whether state k lies inside state j, with at least one layer between, at [j, k]."""
    size = len(states.masks)
    if states.covers is not None:
        above = [0] * size
        for parent, child in zip(*(side[::-1].tolist() for side in states.covers), strict=True):
            above[parent] |= above[child] | 1 << child
        return np.ascontiguousarray(unpack(above, size).T)
    width = states.masks[-1].bit_length()
    holders = np.ascontiguousarray(unpack(states.masks, width).T)
    inside = np.ones((size, size), dtype=bool)
    for at, top in enumerate(states.tops):
        inside[at] = holders[list(bits(top))].all(axis=0)
    np.fill_diagonal(inside, False)
    return np.ascontiguousarray(inside.T)


StageKinds = Literal["all", "first", "later"]
"""Stages from the empty state as first ones and all others as later ones; or only one kind of them,
from any state in the case of `first`, with no care for what is ahead."""


class PairLoads:
    """Costs with the nesting of their states: the loads that `fewest_machines` asks about."""

    def __init__(self, costs: Costs, nested: Flags, stages: StageKinds = "all") -> None:
        """`nested` at [end, start]: see `nesting`."""
        choices = costs.choices
        free = np.zeros(costs.num_states)
        if stages == "first":
            choices = [c._replace(key=c.first, receive=free, send=c.first_send) for c in choices]
        if stages != "all":
            # What is ahead of a stage then is another stage's business.
            costs = Costs(choices, free, costs.memory)
        self.costs, self.nested, self.stages = costs, nested, stages
        self.lowest_start = 0 if stages == "first" else 1
        self.machines = costs.machines
        self.num_states = costs.num_states
        self.load = costs.load
        self.machines_ahead = costs.machines_ahead
        self.key = np.array([choice.key for choice in choices])
        self.first = np.array([choice.first - choice.first[0] for choice in choices])
        self.receive = np.array([choice.receive for choice in choices])
        self.send = np.array([choice.send for choice in choices])
        self.first_send = np.array([choice.first_send for choice in choices])
        # Neither keys nor work grow with the number of a state, but these do: no state ahead of the
        # first one with a large enough `highest` has a large enough key.
        self.highest = np.maximum.accumulate(self.key, axis=1)
        self.lowest_work = np.minimum.accumulate(costs.work[::-1])[::-1]

    def reach(
        self, choices: Ints, limit: float, later: int, ends: Ints, room: Ints
    ) -> tuple[int, Flags]:
        """As `dual.Loads.reach`."""
        least = self.key[choices][:, ends] - limit
        begin = min(
            int(np.searchsorted(self.highest[choice], lowest))
            for choice, lowest in zip(choices.tolist(), least.min(axis=1).tolist(), strict=True)
        )
        most = room * limit * (1 + TOLERANCE)
        end = int(np.searchsorted(self.lowest_work, most.max(), side="right"))
        begin = max(self.lowest_start, begin)
        span = slice(begin, max(begin, end))
        starts = self.receive[choices, span] <= limit
        starts &= self.costs.work[span] <= most[:, None]
        rows = self.key[choices, None, span] >= least[:, :, None]
        rows &= starts[:, None, :]
        rows &= (self.send[choices][:, ends] <= limit)[:, :, None]
        rows &= self.nested[ends, span]
        if self.costs.memory is not None:
            key = self.costs.memory.key
            rows &= (key[ends][:, None] - key[span]) <= self._stash_limit(choices, later)
        return begin, rows

    def first_reach(self, choices: Ints, limit: float, later: int, ends: Ints) -> Flags:
        """As `dual.Loads.first_reach`."""
        if self.stages != "all":
            return np.zeros((len(choices), len(ends)), dtype=bool)
        flags = (self.first[choices][:, ends] <= limit) & (ends > 0)
        flags &= self.first_send[choices][:, ends] <= limit
        if self.costs.memory is not None:
            key = self.costs.memory.key
            flags &= (key[ends] - key[0]) <= self._stash_limit(choices, later)[:, :, 0]
        return flags

    def _stash_limit(self, choices: Ints, later: int) -> Floats:
        """Bytes for each microbatch in flight, to be compared with (choices, ends, states)."""
        assert self.costs.memory is not None
        held = np.array([stashes(later, self.machines[choice]) for choice in choices.tolist()])
        with np.errstate(divide="ignore"):
            return (self.costs.memory.limit / held)[:, None, None]


@dataclass(frozen=True, slots=True)
class Level:
    """States of one size, and their covers."""

    begin: int
    end: int
    children: Ints
    """Relative to the next level."""
    firsts: Ints
    """The position of each state's first child."""


@dataclass(slots=True)
class LevelProbe:
    """`fewest_machines` along covers; memory is not looked at."""

    states: States
    costs: Costs
    machines: int
    levels: list[Level] = field(init=False)
    total: Ints = field(init=False)
    """For each pair of machines behind and a choice, the machines of both; ascending."""
    later: Ints = field(init=False)
    """The machines behind."""
    option: Ints = field(init=False)
    """The choice."""

    def __post_init__(self) -> None:
        assert self.states.covers is not None, "all downsets are needed"
        assert self.costs.memory is None, "two keys cannot be minimised at once"
        self.levels = levels(self.states)
        pairs = [
            (later + taken, later, choice)
            for choice, taken in enumerate(self.costs.machines)
            for later in range(self.machines - taken + 1)
        ]
        self.total, self.later, self.option = np.array(sorted(pairs)).T.copy()

    def __call__(self, limit: float) -> tuple[Stage, ...] | None:
        """Stages that keep within `limit` seconds; None where the machines are not enough."""
        choices = self.costs.choices
        key = np.stack([choice.key for choice in choices], axis=1)
        starts = np.stack([choice.receive <= limit for choice in choices], axis=1)
        ends = np.stack([choice.send <= limit for choice in choices], axis=1)
        room = self.machines - self.costs.machines_ahead(limit)
        nowhere = self.machines + 1
        needed = np.full(len(room), nowhere)
        needed[-1] = 0
        pairs = np.zeros(0, dtype=np.int64)
        least = np.empty((1, 0))
        for level in reversed(self.levels[:-1]):
            above = slice(level.end, level.end + len(least))
            pairs, least = self._with_ends(
                pairs, least, needed[above], key[above], ends[above], limit
            )
            least = np.minimum.reduceat(least[level.children], level.firsts, axis=0)
            here = slice(level.begin, level.end)
            possible = least - key[here][:, self.option[pairs]] <= limit
            possible &= starts[here][:, self.option[pairs]]
            if len(pairs):
                found = np.where(
                    possible.any(axis=1), self.total[pairs][possible.argmax(axis=1)], nowhere
                )
                needed[here] = np.where(found <= room[here], found, nowhere)
        return self._stages(limit, needed)

    def _with_ends(
        self, pairs: Ints, least: Floats, needed: Ints, key: Floats, ends: Flags, limit: float
    ) -> tuple[Ints, Floats]:
        """The columns of W on a level, with the level's own states as ends.

        W is kept by the exact count of machines behind; a pair has a column as long as some state
        below may still use it, since keys only shrink on the way down.
        """
        counts = np.zeros(self.machines + 2, dtype=bool)
        counts[needed] = True
        new = np.flatnonzero(counts[self.later])
        columns = np.union1d(pairs, new)
        wide = np.full((len(least), len(columns)), math.inf)
        wide[:, np.searchsorted(columns, pairs)] = least
        own = key[:, self.option[columns]]
        usable = ends[:, self.option[columns]] & (needed[:, None] == self.later[columns])
        wide[wide - own > limit] = math.inf
        wide = np.minimum(wide, np.where(usable, own, math.inf))
        alive = np.isfinite(wide).any(axis=0)
        return columns[alive], wide[:, alive]

    def _stages(self, limit: float, needed: Ints) -> tuple[Stage, ...] | None:
        """Stages from the front, given the machines behind each state but the first."""
        last = len(needed) - 1
        stages: list[Stage] = []
        at, left = 0, self.machines
        while at != last:
            stage = self._stage_from(at, left, limit, needed)
            if stage is None:
                assert not stages, "what was counted can be built"
                return None
            stages.append(stage)
            at = stage.end
            left = int(needed[at])
        return tuple(stages)

    def _stage_from(self, at: int, left: int, limit: float, needed: Ints) -> Stage | None:
        start = self.states.masks[at]
        for number, choice in enumerate(self.costs.choices):
            if choice.machines > left or (at and choice.receive[at] > limit):
                continue
            key = choice.key if at else choice.first
            possible = (needed <= left - choice.machines) & (key - key[at] <= limit)
            possible &= (choice.send if at else choice.first_send) <= limit
            for end in np.flatnonzero(possible).tolist():
                if end > at and not start & ~self.states.masks[end]:
                    return Stage(at, end, number)
        return None


def levels(states: States) -> list[Level]:
    """The states level by level, the empty one first; all their covers must be there."""
    assert states.covers is not None and states.grown is not None
    parents, children = states.covers
    depths = [0]
    for parent, _ in states.grown:
        depths.append(depths[parent] + 1)
    sizes = np.array(depths)
    begins = np.append(np.flatnonzero(np.diff(sizes, prepend=-1)), len(sizes))
    found: list[Level] = []
    for begin, end in zip(begins[:-1].tolist(), begins[1:].tolist(), strict=True):
        low, high = np.searchsorted(parents, [begin, end]).tolist()
        firsts = np.searchsorted(parents[low:high], np.arange(begin, end))
        found.append(Level(begin, end, children[low:high] - end, firsts))
    return found
