"""Activation policies on one stage, as constraints in an integer program.

Symbols   as in program.py and in autopart/activations/frontier.py, and
          y[l, s, a]  1 where layer l is on stage s under policy a, which is not "keep"
          off[l, s]   y[l, s, a] where a is "offload"
          P, C        the largest stash that may be offloaded, and the longest copy in seconds
          p[l, s]     bytes in the last offloaded layer ahead of l on stage s
          t[l, s]     seconds left of its copy, in forward;  left[l, s] the same when l has run

    (13) Σ y[l, s, a] <= x[l, s]  over a               equal where l may not keep its stash
    (14) now[u, l, s] >= x[u, s] + Σ y[l, s, a] - 1 - Σ x[w, s]    over a that run l again, and over layers w whose
                                                       backward needs l's input from u: without any it stays for l
    (15) p[l+1, s] >= stash_l off[l, s];   p[l+1, s] >= p[l, s] - P off[l, s]
    (16) work[s] >= w_l x[l, s] + Σ r_a y[l, s, a]  over a  + p[l, s] - P (1 - x[l, s])
                    + Σ over j behind l: waiting gradients as in (7) - bytes kept inside j - now[u, j, s] bytes
         The same with l's backward transient beside gradients in place of w_l. Where l runs again this is at least
         w_l, and for each result v that l makes and keeps itself
         twice[v, l, s] >= c[v, s] + Σ y[l, s, a] - 1    over the same a
    (17) left[l, s] >= t[l, s] - F_l x[l, s]
         t[l+1, s] >= c_l off[l, s];            t[l+1, s] >= left[l, s] - C off[l, s]
    (18) wait[l, s] >= left[l, s] - C (1 - off[l, s]);   at the stage's end all of t
    (19) (17) and (18) for the backward, with B_l x[l, s] + Σ x_a y[l, s, a] in place of F_l x[l, s]
         Where backwards are split, I's own seconds take the place of B_l
    (20) in flight * bytes on the host <= a rank's share of host memory     (memory.py)
    (28) in_i[s] >= (16) with l's transient in I, and with bytes kept inside j less those that stay until W
         in_i[s] >= Σ over all j: bytes that stay until W - bytes kept inside j - now[u, j, s] bytes
         Where backwards are split. Where l runs again, its forward's transient counts too

All variables except y are continuous and pushed down. So at whole y they are the numbers in recurrences (1) and (2) in
autopart/activations/frontier.py. A layer on another stage has x = 0 and off = 0, and passes p and t on. P and C
are at least as large as any p and t, so a loosened constraint does not bind. (16) takes the place of (7).
"""

from collections.abc import Callable, Sequence
from typing import Any

import pulp

from autopart.activations.changes import PolicyChanges
from autopart.activations.stage_layers import LayerPolicy, StageLayer, StageLayers
from autopart.cost.transients import Transient
from autopart.solvers.ilp.placement import sum_of
from autopart.solvers.ilp.transients import StageGradients
from autopart.units import Quantity


class PolicyConstraints:
    """The policies for the layers on one stage."""

    def __init__(
        self,
        program: Any,
        stage: int,
        on: Sequence[Quantity],
        layers: StageLayers,
        gradients: StageGradients,
        in_input_grad: Sequence[Transient] = (),
    ) -> None:
        """`program` is a PuLP problem, and `on` has the x[l, stage].

        `in_input_grad` are the layers' transients in I, where backwards are split.
        """
        self.program, self.stage, self.on, self.layers = program, stage, on, layers
        self.in_input_grad = in_input_grad
        self.gradients = gradients
        nowhere = [False] * len(on)
        self.alone: list[StageLayer] = [layers.in_stage(at, nowhere) for at in range(len(on))]
        """Each layer as if alone on its stage: (14), (23) and (24) add the layers around it."""
        self.chosen = [self._policies_of(at, layer) for at, layer in enumerate(self.alone)]
        """For each layer its policies except "keep", each with its y."""
        moved = [policy for own in self.chosen for policy, _ in own if policy.moved_bytes]
        self.most_bytes = max((policy.moved_bytes for policy in moved), default=0)
        """P."""
        self.longest = max((policy.copy_time for policy in moved), default=0.0)
        """C."""
        self.newly_kept = [self._newly_kept(at) for at in range(len(on))]
        self._results_twice: dict[int, Quantity] = {}
        self._transits: dict[int, Any] = {}

    def changes(self) -> PolicyChanges[Quantity]:
        """The changes that the policies make to the stage, as expressions."""
        chosen = [pair for own in self.chosen for pair in own]
        forward = self._waits("forward", lambda at: self._hides(at, self.alone[at].forward_time))
        backward = self._waits("backward", self._hides_in_backward)
        extra = sum_of(policy.extra_time * y for policy, y in chosen)
        freed = sum_of(policy.freed_bytes * y for policy, y in chosen)
        return PolicyChanges(
            extra_time=extra + forward + backward,
            forward_wait=forward,
            freed_bytes=freed - sum_of(size for own in self.newly_kept for size in own),
            workspace_bytes=self._workspace("work", self._needs, self._behind),
            input_grad_workspace_bytes=self._workspace("in_i", self._needs_in_i, self._behind_in_i)
            if self.in_input_grad
            else 0,
            first_backward_bytes=self._workspace("first", self._needs, self._behind_in_first)
            if self.gradients.made
            else 0,
            host_bytes=sum_of(policy.moved_bytes * y for policy, y in chosen if policy.moved_bytes),
        )

    def _variable(self, what: str, at: object, **bounds: Any) -> Any:
        return self.program.add_variable(f"{what}_{at}_{self.stage}", 0, **bounds)

    def _policies_of(self, at: int, layer: StageLayer) -> list[tuple[LayerPolicy, Any]]:
        """A layer's policies except "keep", each with its y."""
        found = [
            (policy, self._variable(f"y_{policy.name}", at, cat=pulp.LpBinary))
            for policy in layer.policies
            if policy.name != "keep"
        ]
        if found:
            some = sum_of(y for _, y in found)
            may_keep = len(found) < len(layer.policies)
            self.program += some <= self.on[at] if may_keep else some == self.on[at]  # (13)
        return found

    def _offloaded(self, at: int) -> tuple[LayerPolicy, Any] | None:
        return next(((policy, y) for policy, y in self.chosen[at] if policy.moved_bytes), None)

    def _again(self, at: int) -> list[Any]:
        """The y under which a layer runs again."""
        return [y for policy, y in self.chosen[at] if not policy.moved_bytes]

    def _newly_kept(self, at: int) -> list[Quantity]:
        """Bytes in values that stay because one layer runs again."""
        kept: list[Quantity] = []
        again = self._again(at)
        for own in self.layers.taken[at] if again else ():
            stays = self._variable(f"now_{own.producer}", f"{at}_{len(kept)}", upBound=1)
            anyway = sum_of(self.on[other] for other in own.needed_by)
            self.program += stays >= self.on[own.producer] + sum_of(again) - 1 - anyway  # (14)
            kept.append(own.bytes * stays)
        return kept

    def _workspace(
        self,
        kind: str,
        needs: Callable[[int], Sequence[Quantity]],
        behind: Callable[[int], Quantity],
    ) -> Quantity:
        """work[s] or in_i[s], in bytes: the most of what layers need, less the bytes behind them."""
        # The variable counts in units that no workspace exceeds by much, so that coefficients are near 1.
        scale = self.most_bytes + max(map(self._room, range(len(self.on)))) or 1
        work, ahead = self._variable(kind, "all"), None
        if kind == "in_i":
            self.program += work >= behind(-1) * (-1 / scale)  # (28)
        for at in range(len(self.on)):
            # Step 1: stash that returns for this layer, and p.
            back = sum_of(policy.returned_bytes / scale * y for policy, y in self.chosen[at])
            if ahead is not None:
                most = self.most_bytes / scale
                back = back + most * ahead - most * (1 - self.on[at])
            # Step 2: the layer's own transient, less stash in later layers.
            less = behind(at)
            for own in needs(at):
                self.program += work >= back + (own - less) * (1 / scale)  # (16), (28)
            # Step 3: p for the next layer.
            ahead = self._in_transit(at, ahead)
        return scale * work

    def _needs(self, at: int) -> list[Quantity]:
        """Transient bytes in one layer: in forward, then in backward beside gradients. The largest counts."""
        layer = self.layers.transients[at]
        needs = [layer.most_bytes * self.on[at]]
        if layer.backward_bytes is not None:
            again = sum_of(self._again(at))
            more = max(0, layer.most_bytes - layer.backward_bytes) * again
            own = layer.backward_bytes * self.on[at] + self.gradients.pending[at]
            needs.append(own + more + self._twice(at))
        return needs

    def _needs_in_i(self, at: int) -> list[Quantity]:
        """The same in I, in which a layer that runs again has its forward's transient too."""
        layer, again = self.in_input_grad[at], sum_of(self._again(at))
        second = max(layer.most_bytes, self.layers.layers[at].workspace_bytes)
        if layer.backward_bytes is None:
            return [layer.most_bytes * self.on[at] + (second - layer.most_bytes) * again]
        more = max(0, second - layer.backward_bytes) * again
        own = layer.backward_bytes * self.on[at] + self.gradients.pending_in_input_grad[at]
        return [layer.most_bytes * self.on[at], own + more + self._twice(at)]

    def _twice(self, at: int) -> Quantity:
        """Bytes in results that exist twice where the layer runs again."""
        if at not in self._results_twice:
            twice: list[Quantity] = []
            for number, (size, sent) in enumerate(self.gradients.results[at]):
                variable = self._variable(f"twice_{number}", at, upBound=1)
                self.program += variable >= sent + sum_of(self._again(at)) - 1  # (16)
                twice.append(size * variable)
            self._results_twice[at] = sum_of(twice)
        return self._results_twice[at]

    def _behind(self, at: int) -> Quantity:
        """Stash bytes in later layers that are not there while one runs, less waiting gradients."""
        return self._kept_behind(at) - sum_of(
            own.grad_bytes * own.waits for own in self.gradients.tied if own.layer > at
        )

    def _behind_in_first(self, at: int) -> Quantity:
        """The same in a first backward, which leaves the gradients that it makes (33)."""
        return self._behind(at) - self.gradients.made[at]

    def _behind_in_i(self, at: int) -> Quantity:
        """The same in I, after which some bytes stay until W."""
        return self._kept_behind(at) - sum_of(
            layer.left_bytes * on
            for place, (layer, on) in enumerate(zip(self.alone, self.on, strict=True))
            if place > at and layer.left_bytes
        )

    def _kept_behind(self, at: int) -> Quantity:
        kept: list[Quantity] = []
        for other in range(at + 1, len(self.on)):
            stash = self.layers.layers[other].stash_bytes
            kept.append(stash * self.on[other])
            kept += [(policy.kept_bytes - stash) * y for policy, y in self.chosen[other]]
            kept += self.newly_kept[other]
        return sum_of(kept)

    def _room(self, at: int) -> int:
        layer = self.alone[at]
        own = max(layer.workspace_bytes, layer.input_grad_workspace_bytes)
        return own + max(policy.returned_bytes for policy in layer.policies)

    def _in_transit(self, at: int, ahead: Any) -> Any:
        """p behind a layer, as a share of P; None where no layer before may be offloaded."""
        found = self._offloaded(at)
        if found is None:
            return ahead
        if at in self._transits:
            return self._transits[at]
        policy, off = found
        behind = self._variable("p", at, upBound=1)
        self.program += behind >= policy.moved_bytes / self.most_bytes * off  # (15)
        if ahead is not None:
            self.program += behind >= ahead - off  # (15)
        self._transits[at] = behind
        return behind

    def _hides(self, at: int, seconds: float) -> Quantity:
        """The share of C that a layer's own seconds hide."""
        return min(1.0, seconds / self.longest) * self.on[at]

    def _hides_in_backward(self, at: int) -> Quantity:
        """The same in backward, which recomputation makes longer (19)."""
        if not self.alone[at].backward_time:
            return 0.0
        split = bool(self.in_input_grad)
        seconds = self.alone[at].input_grad_time if split else self.alone[at].backward_time
        kept = min(1.0, seconds / self.longest)
        more = [
            (min(1.0, (seconds + policy.extra_time) / self.longest) - kept) * y
            for policy, y in self.chosen[at]
        ]
        return self._hides(at, seconds) + sum_of(more)

    def _waits(self, name: str, hides: Callable[[int], Quantity]) -> Quantity:
        """Seconds that a rank waits for copies in one direction. Variables count as shares of C."""
        left: Any = None
        waits: list[Any] = []
        for at in range(len(self.on)) if self.longest else ():
            # Step 1: the layer runs, and hides a part of the last copy.
            if left is not None:
                ran = self._variable(f"left_{name}", at, upBound=1)
                self.program += ran >= left - hides(at)  # (17)
                left = ran
            found = self._offloaded(at)
            if found is None:
                continue
            # Step 2: if it is offloaded, its own copy begins, and the rest of the last one is waited for.
            policy, off = found
            behind = self._variable(f"t_{name}", at, upBound=1)
            self.program += behind >= policy.copy_time / self.longest * off  # (17)
            if left is not None:
                self.program += behind >= left - off  # (17)
                wait = self._variable(f"wait_{name}", at, upBound=1)
                self.program += wait >= left - (1 - off)  # (18)
                waits.append(wait)
            left = behind
        # At the stage's end the rank waits for all that is left (18).
        return self.longest * sum_of([*waits, left]) if left is not None else 0.0
