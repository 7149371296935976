"""A witness for steps with overlapped pairs: longest paths, from the orders' text alone.

It shares nothing with the simulator. Each event's time is relaxed until no time changes. A pair is one
block that starts once both its inputs are there, and whose results are both there at its end.
"""

import re
from typing import NamedTuple

_WORD = re.compile(r"\((\d+)F(\d+);(\d+)B(\d+)\)OVERLAP_F_B|(\d+)([FBIW])(\d+)")

Part = tuple[int, str, int]
"""Stage, op and microbatch."""


class Seconds(NamedTuple):
    """One stage's seconds."""

    forward: float
    backward: float
    weights: float
    saving: float
    send: float
    send_back: float


class Block(NamedTuple):
    """What a rank runs at once: an action, or the two actions of a pair."""

    rank: int
    parts: tuple[Part, ...]


class PairedSteps:
    """The longest paths through a step whose sends overlap compute, or do not."""

    def __init__(self, orders: list[str], stages: list[Seconds], *, overlap: bool) -> None:
        self.stages, self.overlap = stages, overlap
        self.blocks = [
            Block(rank, _parts(word)) for rank, order in enumerate(orders) for word in order.split()
        ]
        self.maker = {part: at for at, block in enumerate(self.blocks) for part in block.parts}
        self.start = [0.0] * len(self.blocks)
        self.end = [0.0] * len(self.blocks)
        self.there: dict[Part, float] = dict.fromkeys(self.maker, 0.0)
        """When a part's result is on the rank that takes it; without overlap, when it may be received."""
        changed = True
        while changed:
            before = (list(self.start), list(self.end), dict(self.there))
            self._relax()
            changed = before != (self.start, self.end, self.there)

    def _relax(self) -> None:
        free: dict[int, float] = {}
        queue: dict[tuple[int, int], float] = {}
        for at, (rank, parts) in enumerate(self.blocks):
            # Step 1: the block starts when its rank is free and all its inputs are there.
            inputs = [giver for part in parts if (giver := self._giver(rank, part))]
            self.start[at] = max([free.get(rank, 0.0), *(self.there[one] for one in inputs)])
            received = 0.0 if self.overlap else sum(map(self._moving, inputs))
            made = self.start[at] + received + self._compute(parts)
            # Step 2: its results go out, one after the other over each link.
            for part in parts:
                self.there[part] = made
                taker = self._taker(rank, part)
                if taker is None:
                    continue
                if self.overlap:
                    link = (rank, taker)
                    self.there[part] = max(made, queue.get(link, 0.0)) + self._moving(part)
                    queue[link] = self.there[part]
                else:
                    made += self._moving(part)
            free[rank] = self.end[at] = made

    def _giver(self, rank: int, part: Part) -> Part | None:
        """The result from another rank that a part needs."""
        stage, op, microbatch = part
        if op == "W":
            return None
        ahead = stage - 1 if op == "F" else stage + 1
        for own in "F" if op == "F" else "BI":
            giver = (ahead, own, microbatch)
            if giver in self.maker and self.blocks[self.maker[giver]].rank != rank:
                return giver
        return None

    def _taker(self, rank: int, part: Part) -> int | None:
        """The other rank that needs a part's result."""
        stage, op, microbatch = part
        if op == "W":
            return None
        after = stage + 1 if op == "F" else stage - 1
        for own in "F" if op == "F" else "BI":
            taker = self.maker.get((after, own, microbatch))
            if taker is not None and self.blocks[taker].rank != rank:
                return self.blocks[taker].rank
        return None

    def _moving(self, part: Part) -> float:
        own = self.stages[part[0]]
        return own.send if part[1] == "F" else own.send_back

    def _compute(self, parts: tuple[Part, ...]) -> float:
        own = self.stages[parts[0][0]]
        if len(parts) == 2:
            other = self.stages[parts[1][0]]
            hidden = own.saving if own.saving < other.saving else other.saving
            return own.forward + other.backward - hidden
        rest = own.backward - own.weights
        return {"F": own.forward, "B": own.backward, "I": rest, "W": own.weights}[parts[0][1]]


def _parts(word: str) -> tuple[Part, ...]:
    match = _WORD.fullmatch(word)
    assert match, word
    f_stage, f_microbatch, b_stage, b_microbatch, stage, op, microbatch = match.groups()
    if op:
        return ((int(stage), op, int(microbatch)),)
    return ((int(f_stage), "F", int(f_microbatch)), (int(b_stage), "B", int(b_microbatch)))
