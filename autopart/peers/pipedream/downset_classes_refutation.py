"""Whether stages between downset classes can keep within a bottleneck: a refusal is a proof.

Symbols   T, n     a bottleneck, and the machines;  D ∈ E  a downset in a class (downset_classes.py)
          o        a choice: a stage on q_o machines is busy for (c + s_o p) / q_o seconds
          b_m(E)   a bound: the layers behind a D ∈ E run on m machines within T only if D has at least
                   b_m(E) seconds of compute ahead

A stage under choice o from D to D' keeps T only if its transfers at D and D' are short enough, and

    c(D) + s_o p(D) >= c(D') + s_o p(D') - q_o T

With the class bounds, over all E' ⊇ E, including E,

    b_m(E) = max( lo_c(E),  min over o of max( min over E' of b_m'(E') - q_o T,
             min over E' of (b_m'(E') + s_o lo_p(E')) - s_o hi_p(E) - q_o T ) ),    m' = m - q_o

E drops out where this exceeds hi_c(E). The layers behind the full class need 0 machines. T is
refuted if no first stage reaches a class whose rest runs on the machines left over. *Proof.* By
induction over the stages in a plan within T, from its end. ∎ The minima over E' go along covers, as
in cover_search.py. A class needs a bound for m only if its work can stand ahead of m machines at
all. O(covers) for each m and o.
"""

import time
from typing import NamedTuple

import numpy as np

from autopart.peers.pipedream.charged_layers import Floats
from autopart.peers.pipedream.downset_classes import Classes
from autopart.solvers.fewest_ranks import Flags

ROUNDING = 1e-12
"""Relative rounding error in sums over thousands of times; refusals keep this distance."""


class RelaxedChoice(NamedTuple):
    """One choice for a stage, its charges per byte."""

    machines: int
    """Machines that the stage takes."""
    sync: float
    """Seconds per parameter byte, times `machines`, that add to the compute."""
    receive: float
    """Seconds per byte of the cut at the stage's start, except for the first stage."""
    send: float
    """Seconds per byte of the cut at the stage's end, except for the first and last stage."""
    first_send: float
    """Seconds per byte of the cut at the first stage's end."""


class RelaxedStages(NamedTuple):
    """Stages between classes, and the machines for them."""

    classes: Classes
    options: list[RelaxedChoice]
    machines: int
    compute: float
    """Seconds over all layers."""
    parameters: float
    """Bytes over all layers."""

    def refutes(self, limit: float, deadline: float) -> bool:
        """Whether no plan keeps within `limit` seconds.

        False also means: not known, or not known before `deadline`, a reading from
        time.perf_counter().
        """
        room = limit * (1 + ROUNDING)
        low, high = self.classes.compute
        whole = [self.compute + option.sync * self.parameters for option in self.options]
        # One stage holds everything: no refusal.
        if any(w <= o.machines * room for w, o in zip(whole, self.options, strict=True)):
            return False
        behind = [np.full(len(low), np.inf) for _ in range(self.machines)]
        for later in range(1, self.machines):
            # Step 1: `later` machines run one last stage.
            for option, all_layers in zip(self.options, whole, strict=True):
                if option.machines == later:
                    self._start(behind[later], option, room, self.compute, all_layers)
            # Step 2: drop classes that are out of range for `later` machines behind.
            least = np.maximum(behind[later], low * (1 - ROUNDING))
            ahead = (self.machines - later) * room
            least[(least > high * (1 + ROUNDING)) | (low > ahead)] = np.inf
            # Step 3: give up where a first stage reaches a class that is left.
            if time.perf_counter() > deadline or self._reached(least, later, room):
                return False
            # Step 4: put one more stage ahead of the classes.
            for option in self.options:
                if later + option.machines < self.machines and np.isfinite(least).any():
                    self._lengthen(behind, least, later, option, room)
            behind[later] = low[:0]
        return True

    def _start(
        self,
        least: Floats,
        option: RelaxedChoice,
        room: float,
        without: Floats | float,
        ends: Floats | float,
    ) -> None:
        """Lower the compute that must stand ahead of a stage's start.

        `without` and `ends` are the minima over the stage's ends, without and with parameters.
        """
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
        self, behind: list[Floats], least: Floats, later: int, option: RelaxedChoice, room: float
    ) -> None:
        """Put a stage ahead of the classes that have `later` machines behind them."""
        total = later + option.machines
        usable = option.send * self.classes.cut <= room
        ends = np.where(usable, least, np.inf)
        low, high = self.classes.compute
        starts = (low <= (self.machines - total) * room) & (high >= self.compute - total * room)
        found = np.stack([ends, ends + option.sync * self.classes.parameters[0]], axis=1)
        if self._least_above(found, np.isfinite(ends), starts):
            self._start(behind[total], option, room, found[:, 0], found[:, 1])

    def _least_above(self, values: Floats, ends: Flags, starts: Flags) -> bool:
        """Replace each class's value by the minimum over it and all classes above it.

        It goes down as far as some class in `starts`. Returns whether any such class can have a
        value.
        """
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
