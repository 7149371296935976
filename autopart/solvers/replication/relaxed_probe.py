"""Whether stages between classes of downsets can keep within a bottleneck: the answer no is a proof.

Symbols   T, n     a bottleneck, and the machines;  D ∈ E  a downset of a class (relaxation.py)
          o        an option: a stage on q_o machines is busy (c + s_o p) / q_o seconds
          b_m(E)   a bound: what is behind a D ∈ E runs on m machines within T only if D has at least
                   b_m(E) seconds of compute ahead

A stage of option o from D to D' keeps T only if c(D) + s_o p(D) >= c(D') + s_o p(D') - q_o T, and what
crosses D' and D is small enough for it. With the bounds of the classes, over all E' ⊇ E, E itself too,

    b_m(E) = max( lo_c(E),  min over o of max( min over E' of b_m'(E') - q_o T,
             min over E' of (b_m'(E') + s_o lo_p(E')) - s_o hi_p(E) - q_o T ) ),    m' = m - q_o

and E is out of the question where this is above hi_c(E). What is behind all layers needs 0 machines.
T is refuted if no first stage reaches a class whose rest runs on what is left. *Proof.* By induction
over the stages of a plan within T, from its end. ∎ The minima over E' go along covers, as in
downsets.py. A class needs a bound for m only if its work can be ahead of m machines at all.
O(covers) for each m and o.
"""

import time
from typing import NamedTuple

import numpy as np

from autopart.loads.pipedream import Floats
from autopart.solvers.replication.dual import Flags
from autopart.solvers.replication.relaxation import Classes

ROUNDING = 1e-12
"""Sums of thousands of times may be off by this share; a refusal must not be."""


class Option(NamedTuple):
    """One way to run a stage."""

    machines: int
    sync: float
    """Seconds for each byte of parameters, times `machines`, that are added to the compute."""
    receive: float
    """Seconds for each byte of the cut that it starts at, unless it is the first stage."""
    send: float
    """Seconds for each byte of the cut that it ends at, unless it is the first or the last one."""
    first_send: float
    """The same of the first stage."""


class RelaxedProbe(NamedTuple):
    """A question about classes."""

    classes: Classes
    options: list[Option]
    machines: int
    compute: float
    """Seconds of all layers."""
    parameters: float
    """Bytes of all layers."""

    def refutes(self, limit: float, deadline: float) -> bool:
        """Whether no plan keeps within `limit` seconds; False where it is not known, or not before
        `deadline`, a reading of time.perf_counter()."""
        room = limit * (1 + ROUNDING)
        low, high = self.classes.compute
        whole = [self.compute + option.sync * self.parameters for option in self.options]
        if any(w <= o.machines * room for w, o in zip(whole, self.options, strict=True)):
            return False
        behind = [np.full(len(low), np.inf) for _ in range(self.machines)]
        for later in range(1, self.machines):
            for option, all_layers in zip(self.options, whole, strict=True):
                if option.machines == later:
                    self._start(behind[later], option, room, self.compute, all_layers)
            least = np.maximum(behind[later], low * (1 - ROUNDING))
            ahead = (self.machines - later) * room
            least[(least > high * (1 + ROUNDING)) | (low > ahead)] = np.inf
            if time.perf_counter() > deadline or self._reached(least, later, room):
                return False
            for option in self.options:
                if later + option.machines < self.machines and np.isfinite(least).any():
                    self._lengthen(behind, least, later, option, room)
            behind[later] = low[:0]
        return True

    def _start(
        self,
        least: Floats,
        option: Option,
        room: float,
        without: Floats | float,
        ends: Floats | float,
    ) -> None:
        """Lower what must be ahead of an option's start: the minima over its ends without their
        parameters, and with them."""
        parameters = self.classes.parameters[1]
        needed = np.maximum(without, ends - option.sync * parameters) - option.machines * room
        needed = np.where(option.receive * self.classes.cut <= room, needed, np.inf)
        np.minimum(least, needed, out=least)

    def _reached(self, least: Floats, later: int, room: float) -> bool:
        """Whether a first stage may end at some class with `later` machines behind it."""
        for option in self.options:
            if option.machines + later <= self.machines:
                busy = least + option.sync * self.classes.parameters[0]
                possible = busy <= option.machines * room
                possible &= option.first_send * self.classes.cut <= room
                if possible.any():
                    return True
        return False

    def _lengthen(
        self, behind: list[Floats], least: Floats, later: int, option: Option, room: float
    ) -> None:
        """Put a stage of an option ahead of the classes that `later` machines are behind."""
        total = later + option.machines
        usable = option.send * self.classes.cut <= room
        ends = np.where(usable, least, np.inf)
        low, high = self.classes.compute
        starts = (low <= (self.machines - total) * room) & (high >= self.compute - total * room)
        found = np.stack([ends, ends + option.sync * self.classes.parameters[0]], axis=1)
        if self._least_above(found, np.isfinite(ends), starts):
            self._start(behind[total], option, room, found[:, 0], found[:, 1])

    def _least_above(self, values: Floats, ends: Flags, starts: Flags) -> bool:
        """Put the minimum over all classes above each one, and it, in place of its value, as far down
        as some of `starts`; whether any of these can have one."""
        if not ends.any() or not starts.any():
            return False
        lowest, highest = int(starts.argmax()), len(ends) - 1 - int(ends[::-1].argmax())
        for level in reversed(self.classes.levels[:-1]):
            if level.begin > highest:
                continue
            if level.end <= lowest:
                values[: level.end] = np.inf
                break
            above = values[level.end :][level.children]
            here = slice(level.begin, level.end)
            least = np.minimum.reduceat(above, level.firsts, axis=0)
            values[here] = np.minimum(values[here], least)
        return True
