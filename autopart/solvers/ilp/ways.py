"""Which way each layer goes, as constraints of an integer program.

Symbols   as in program.py and in autopart/frontier.py, and
          y[l, s, w]  1 where layer l is on stage s and its stash goes way w, which is not to be kept
          off[l, s]   y[l, s, w] of the way to the host
          P, C        the largest stash that may be offloaded, and the seconds of its way
          p[l, s]     bytes of the last offloaded layer of stage s ahead of layer l
          t[l, s]     what is left of its way, in forward; left[l, s] the same when l has run

    (13) sum over w of y[l, s, w] <= x[l, s]                 equal where l may not keep its stash
    (14) now[u, l, s] >= x[u, s] + y[l, s, w] - 1            what a recomputed l takes from u stays, if no
                                                             backward needs it (the sum over such w)
    (15) p[l+1, s] >= stash of l * off[l, s],   p[l+1, s] >= p[l, s] - P off[l, s]
    (16) work[s] >= w_l x[l, s] + (sum over w of r_w y[l, s, w]) + p[l, s] - P (1 - x[l, s])
                    - what the layers behind l keep inside on stage s, and now[u, j, s] of theirs
                    + the gradients that wait, as in (7)
         and so with what the backward needs beside gradients in place of w_l; where l runs again that is no less
         than w_l, and twice[v, l, s] >= c[v, s] + (sum of such y[l, s, w]) - 1 for what l makes and keeps itself
    (17) left[l, s] >= t[l, s] - F_l x[l, s]
         t[l+1, s] >= c_l off[l, s],            t[l+1, s] >= left[l, s] - C off[l, s]
    (18) wait[l, s] >= left[l, s] - C (1 - off[l, s]);   at the end of the stage all of t
    (19) (17) and (18) for the backward, with B_l x[l, s] + (sum over w of x_w y[l, s, w]) in place of F_l x[l, s]
    (20) in flight * bytes on the host <= a rank's share of its memory

All but y are continuous and pushed down, so that at whole y they are the numbers of the recurrence (1) and of (2) in
autopart/frontier.py: a layer on another stage has x = 0 and off = 0, and passes p and t on; P and C are no less
than any p and t, so what they loosen is loosened to nothing. (16) takes the place of (7).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pulp

from autopart.frontier import Choice
from autopart.stage_load import Transient
from autopart.ways import Step, Steps, Way

Expression = Any
"""A PuLP affine expression, or a number."""


class Beside(NamedTuple):
    """What of a stage's gradients counts beside its layers."""

    tied: Sequence[tuple[int, int, Expression]]
    """The layers of which gradients of tied parameters wait, their bytes, and the again[t, l, stage] of (23)."""
    pending: Sequence[Expression]
    """By layer, the bytes of gradients of values that are there while its backward runs (24)."""
    results: Sequence[Sequence[tuple[int, Expression]]]
    """By layer, the bytes of what it makes and keeps itself, and whether the stage sends that on."""


class StageProgram:
    """The ways of the layers on one stage."""

    def __init__(
        self,
        program: Any,
        stage: int,
        on: Sequence[Expression],
        steps: Steps,
        beside: Beside,
    ) -> None:
        """`on` are the x[l, stage]."""
        self.program, self.stage, self.on, self.steps = program, stage, on, steps
        self.beside = beside
        nowhere = [False] * len(on)
        self.alone: list[Step] = [steps.step(at, nowhere) for at in range(len(on))]
        """The layers, where nothing that they take is made on the same stage."""
        self.goes = [self._ways_of(at, step) for at, step in enumerate(self.alone)]
        moved = [way for own in self.goes for way, _ in own if way.moved_bytes]
        self.most_bytes = max((way.moved_bytes for way in moved), default=0)
        self.newly_kept = [self._newly_kept(at) for at in range(len(on))]
        self.longest = max((way.copy_time for way in moved), default=0.0)

    def choice(self) -> Choice:
        """What the ways add to the stage, as expressions."""
        chosen = [pair for own in self.goes for pair in own]
        forward = self._waits("forward", lambda at: self._hides(at, self.alone[at].forward_time))
        backward = self._waits("backward", self._hides_in_backward)
        extra = pulp.lpSum(way.extra_time * y for way, y in chosen)
        freed = pulp.lpSum(way.freed_bytes * y for way, y in chosen)
        return Choice(
            extra_time=extra + forward + backward,
            forward_wait=forward,
            freed_bytes=freed - pulp.lpSum(size for own in self.newly_kept for size in own),
            workspace_bytes=self._workspace(),
            host_bytes=pulp.lpSum(way.moved_bytes * y for way, y in chosen if way.moved_bytes),
        )

    def _variable(self, what: str, at: object, **bounds: Any) -> Any:
        return self.program.add_variable(f"{what}_{at}_{self.stage}", 0, **bounds)

    def _ways_of(self, at: int, step: Step) -> list[tuple[Way, Any]]:
        """The ways of a layer but to keep it, each with its y."""
        found = [
            (way, self._variable(f"y_{way.name}", at, cat=pulp.LpBinary))
            for way in step.ways
            if way.name != "keep"
        ]
        if found:
            some = pulp.lpSum(y for _, y in found)
            may_keep = len(found) < len(step.ways)
            self.program += some <= self.on[at] if may_keep else some == self.on[at]  # (13)
        return found

    def _offloaded(self, at: int) -> tuple[Way, Any] | None:
        return next(((way, y) for way, y in self.goes[at] if way.moved_bytes), None)

    def _again(self, at: int) -> list[Any]:
        """The y of the ways in which a layer runs again."""
        return [y for way, y in self.goes[at] if not way.moved_bytes]

    def _newly_kept(self, at: int) -> list[Expression]:
        """Bytes of values that stay because one layer runs again."""
        kept: list[Expression] = []
        again = self._again(at)
        for producer, size in self.steps.taken[at] if again else ():
            stays = self._variable(f"now_{producer}", f"{at}_{len(kept)}", upBound=1)
            self.program += stays >= self.on[producer] + pulp.lpSum(again) - 1  # (14)
            kept.append(size * stays)
        return kept

    def _workspace(self) -> Expression:
        scale = self.most_bytes + max(self._room(step) for step in self.alone) or 1
        work, ahead = self._variable("work", "all"), None
        for at in range(len(self.on)):
            back = pulp.lpSum(way.back_bytes / scale * y for way, y in self.goes[at])
            if ahead is not None:
                most = self.most_bytes / scale
                back = back + most * ahead - most * (1 - self.on[at])
            behind = self._behind(at)
            for own in self._needs(at, self.steps.transients[at]):
                self.program += work >= back + (own - behind) * (1 / scale)  # (16)
            ahead = self._in_transit(at, ahead)
        return scale * work

    def _needs(self, at: int, layer: Transient) -> list[Expression]:
        """Bytes of one layer and of gradients, of which the largest counts."""
        needs = [layer.most_bytes * self.on[at]]
        if layer.backward_bytes is not None:
            again = pulp.lpSum(self._again(at))
            more = max(0, layer.most_bytes - layer.backward_bytes) * again
            for number, (size, sent) in enumerate(self.beside.results[at]):
                twice = self._variable(f"twice_{number}", at, upBound=1)
                self.program += twice >= sent + again - 1
                more = more + size * twice
            own = layer.backward_bytes * self.on[at] + self.beside.pending[at]
            needs.append(own + more)
        return needs

    def _behind(self, at: int) -> Expression:
        """Bytes of the layers behind one that are not there while it runs, less the gradients that wait."""
        kept: list[Expression] = []
        for other in range(at + 1, len(self.on)):
            stash = self.steps.layers[other].stash_bytes
            kept.append(stash * self.on[other])
            kept += [(way.kept_bytes - stash) * y for way, y in self.goes[other]]
            kept += self.newly_kept[other]
        return pulp.lpSum(kept) - pulp.lpSum(
            size * on for place, size, on in self.beside.tied if place > at
        )

    def _room(self, step: Step) -> int:
        return step.workspace_bytes + max(way.back_bytes for way in step.ways)

    def _in_transit(self, at: int, ahead: Any) -> Any:
        """p behind a layer, as a share of P; None ahead of the first that may be offloaded."""
        found = self._offloaded(at)
        if found is None:
            return ahead
        way, off = found
        behind = self._variable("p", at, upBound=1)
        self.program += behind >= way.moved_bytes / self.most_bytes * off  # (15)
        if ahead is not None:
            self.program += behind >= ahead - off
        return behind

    def _hides(self, at: int, seconds: float) -> Expression:
        """The part of C that a layer's own seconds hide."""
        return min(1.0, seconds / self.longest) * self.on[at]

    def _hides_in_backward(self, at: int) -> Expression:
        seconds = self.alone[at].backward_time
        if not seconds:
            return 0.0
        more = [
            (min(1.0, (seconds + way.extra_time) / self.longest) - min(1.0, seconds / self.longest))
            * y
            for way, y in self.goes[at]
        ]  # (19)
        return self._hides(at, seconds) + pulp.lpSum(more)

    def _waits(self, name: str, hides: Callable[[int], Expression]) -> Expression:
        """Seconds that one direction waits for the host."""
        left: Any = None
        waits: list[Any] = []
        for at in range(len(self.on)) if self.longest else ():
            if left is not None:
                ran = self._variable(f"left_{name}", at, upBound=1)
                self.program += ran >= left - hides(at)  # (17)
                left = ran
            found = self._offloaded(at)
            if found is None:
                continue
            way, off = found
            behind = self._variable(f"t_{name}", at, upBound=1)
            self.program += behind >= way.copy_time / self.longest * off
            if left is not None:
                self.program += behind >= left - off
                wait = self._variable(f"wait_{name}", at, upBound=1)
                self.program += wait >= left - (1 - off)  # (18)
                waits.append(wait)
            left = behind
        return self.longest * pulp.lpSum([*waits, left]) if left is not None else 0.0
