"""The exact Pareto frontier of seconds and bytes, over the policies for a stage's layers.

Symbols   l        a layer on the stage, in the order of execution
          F_l, B_l its forward and backward seconds
          x_l      seconds that its policy adds to its backward
          g_l      bytes per microbatch that its policy frees
          k_l      bytes per microbatch that its policy leaves inside it, less gradients for tied parameters
                   that its backward leaves waiting for an earlier layer
          w_l      its workspace, with gradients that lie in the stage while it runs
          r_l      bytes that its policy adds to w_l while it runs (autopart/activations/stage_layers.py)
          m_l      gradient bytes that its first backward leaves, and of each tied parameter whose first layer on
                   the stage it is
          h_l      bytes inside it that stay from I to W, where the backward is split
          c_l      seconds to copy its stash to the host, or back
          p        stash bytes in the last offloaded layer before l; 0 where there is none
          t        seconds left for the last copy

**Copies to the host.** One layer is in transit in each direction. In forward, an offloaded layer's stash leaves when
the layer has run. When the next offloaded layer has run, or the forward ends, the rank waits until that copy is
done. Each layer does

    t := max(0, t - F_l);     if l is offloaded:  wait t,  t := c_l;     at the end:  wait t             (1)

In backward, the last offloaded layer's stash starts to return at once. Each other one starts when the next offloaded
layer's backward starts. A layer's backward waits for its own stash. So l's copy hides beneath the layers behind l up
to the next offloaded one, that one included. In forward these are the same layers. So (1) with B_l + x_l for F_l
gives the backward's waits in the same pass. Where the link does not overlap with compute, no time is taken off t.

Returned stash stays on the device from then on. So the workspace, above the stage's whole stash, is

    u = max over l:  w_l + r_l + p - Σ k_j over the layers j behind l                                    (2)

In forward, p is leaving while l runs, and the layers behind l have kept nothing yet. In backward, these layers have
freed their stash. Layer by layer this is u := max(u - k_l, w_l + r_l + p), which grows with u. Nothing crosses
the borders between actions.

**Split backwards.** The stash returns in I, and what W needs stays. So layers behind l have left h_j while l runs in
I, whatever their policies are. With w_l and r_l as they are in I, the workspace in I is
    v = max over l:  w_l + r_l + p - Σ (k_j - h_j) over the layers j behind l                            (3)

and at least the same sum over all layers with w = r = 0. W needs the same bytes under every policy. Stash returns within
I, so only I's own seconds hide it: B_l are the seconds of I then.

**First backwards.** A stage's first backward makes the gradients, which stay. So its workspace, with them, is

    z = max over l:  w_l + r_l + p + m_l - Σ (k_j - m_j) over the layers j behind l                      (4)

and at least the same sum over all layers (autopart/cost/workspaces.py). It counts where all microbatches of a rank are in flight
before its first backward.

**The frontier.** A point is one choice of policies for the stage's first layers. It has

    the seconds that it adds: waits in both directions and all x_l        the bytes that it frees
    u        v        z        p        t in forward and in backward                        the bytes on the host
    the number of layers that do not keep their stash

The frontier grows layer by layer (Nemhauser and Ullmann, Management Science 15, 1969). Each point is continued with
each policy for the next layer, and dominated points are dropped. Point a dominates b if

    seconds_a + max(0, t_a - t_b) forward + the same backward <= seconds_b      and a is no worse in the others

Where seconds are equal, the point with fewer bytes on the host counts as faster, then the one that changes fewer
layers. Bytes on the host also count among the others where host memory is limited.

A step may ask for a shorter forward, or for a shorter backward. Where both count *apart*, the first line is asked of
the forward's seconds and of the backward's, each alone: the forward's with its own t, the backward's with its own.

*Claim.* For each continuation from b, the same continuation from a is no worse. *Proof.* All numbers except waits
grow alike. By (1) a continuation's waits grow with t, and by at most as much as t. Each step maps t to
max(0, t - F_l), which brings two values no further apart. A wait pays t in full and leaves both at c_l. Where
seconds are equal in the end they were equal before, and bytes and layers have kept their order. ∎

So for each limit in bytes the frontier has a choice with the fewest busy seconds. Among these it has one that
moves the fewest bytes and changes the fewest layers.

For identical layers only two things matter: how many have each policy, and how far apart the offloaded ones lie. All
other choices have the same point and are dropped. Layers that all differ can have 2^n points, and so can equal ones where
z counts. Past `most_points`, or `FIRST_POINTS` with z, an even selection stays, which has both ends. Each added layer takes O(points²), in blocks.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from autopart.activations.points import Points, even_places, joined, no_layers, points_at
from autopart.activations.policies import POLICIES
from autopart.activations.stage_layers import LayerPolicy, StageLayer
from autopart.cost.stage_totals import Array
from autopart.records.layer_graph import Layer

FEW_KINDS = 8
"""Kinds of layers up to which few stages differ. Then more points of each can be followed."""
FIRST_POINTS = 512
"""The most points where first backwards count: z tells many more points apart, and time grows with their square."""
BLOCK = 256
"""Points that are compared at once with the points that stay."""
ROUNDING = 1e-12
"""Relative difference of two sums of the same waits in different orders."""


def most_points(layers: Iterable[Layer]) -> int:
    """How many points are followed for each stage.

    That is more than repeated blocks have. Where all layers differ, each stage has its own frontier, and the number
    is one that grows within seconds.
    """
    kinds = {(la.kind, la.forward_time, la.stash_bytes) for la in layers}
    return 4096 if len(kinds) <= FEW_KINDS else 512


class Growth(NamedTuple):
    """The rules by which frontiers grow by a layer."""

    timed: bool = True
    """Whether seconds count beside bytes."""
    hosted: bool = False
    """Whether host memory is limited."""
    most_points: int = 512
    """How many points are followed for each stage."""
    split: bool = False
    """Whether backwards may be split, so that v counts."""
    first: bool = False
    """Whether z counts."""
    apart: bool = False
    """Whether forward seconds and backward seconds count apart."""

    @property
    def most_followed(self) -> int:
        """The most points that stay."""
        return min(self.most_points, FIRST_POINTS) if self.first else self.most_points

    def grow(self, points: Points, layer: StageLayer, at: int = 0) -> Points:
        """The frontier with one more layer, number `at` on the stage."""
        continued = [self._continued(points, layer, policy, at) for policy in layer.policies]
        return continued[0] if len(continued) == 1 else self.undominated(joined(continued))

    def ended(self, points: Points) -> Points:
        """The frontier where the stage ends: the rank waits for copies that still run."""
        nothing, none = np.zeros_like(points.extra_time), np.zeros_like(points.host_bytes)
        waited = points._replace(
            extra_time=points.extra_time + points.leaving_time + points.coming_time,
            forward_wait=points.forward_wait + points.leaving_time,
            transit_bytes=none,
            leaving_time=nothing,
            coming_time=nothing,
        )
        return self.undominated(waited) if points.transit_bytes.any() else points

    def _continued(self, points: Points, layer: StageLayer, policy: LayerPolicy, at: int) -> Points:
        """The points with one more layer under one policy."""
        # Step 1: the layer runs, and hides a part of the last copy in each direction (1).
        leaving = np.maximum(points.leaving_time - layer.forward_time, 0.0)
        coming = points.coming_time
        if layer.backward_time:
            hides = layer.input_grad_time if self.split else layer.backward_time
            coming = np.maximum(coming - hides - policy.extra_time, 0.0)
        # Step 2: workspace while it runs, and while earlier layers run (2).
        added = policy.returned_bytes + policy.recompute_bytes
        here = layer.workspace_bytes + added + points.transit_bytes
        before = points.workspace_bytes - policy.kept_bytes + layer.waiting_bytes
        in_input_grad = points.input_grad_workspace_bytes
        if self.split:
            room = layer.input_grad_workspace_bytes + policy.returned_bytes
            room = room + policy.input_grad_recompute_bytes + points.transit_bytes
            in_input_grad = np.maximum(in_input_grad - policy.kept_bytes + layer.left_bytes, room)
        first = points.first_backward_bytes
        if self.first:
            first = np.maximum(first - policy.kept_bytes + layer.waiting_bytes, here)
            first = first + layer.made_bytes
        moved = points._replace(
            extra_time=points.extra_time + policy.extra_time,
            freed_bytes=points.freed_bytes + policy.freed_bytes,
            workspace_bytes=np.maximum(before, here),
            input_grad_workspace_bytes=in_input_grad,
            first_backward_bytes=first,
            leaving_time=leaving,
            coming_time=coming,
            changed_layers=points.changed_layers + (policy.name != "keep"),
            chosen=None
            if points.chosen is None
            else points.chosen | (POLICIES.index(policy.name) << 2 * at),
        )
        if not policy.moved_bytes:
            return moved
        # Step 3: an offloaded layer waits for the rest of the last copy, and its own copy begins.
        return moved._replace(
            extra_time=moved.extra_time + leaving + coming,
            forward_wait=moved.forward_wait + leaving,
            transit_bytes=np.full_like(moved.transit_bytes, policy.moved_bytes),
            leaving_time=np.full_like(leaving, policy.copy_time),
            coming_time=np.full_like(coming, policy.copy_time),
            host_bytes=moved.host_bytes + policy.moved_bytes,
        )

    def undominated(self, points: Points) -> Points:
        """The points that no other one dominates, at most `most_followed`."""
        # Step 1: an order in which points only dominate later ones.
        points = points_at(points, self._order(points))
        left = np.zeros(0, dtype=np.int64)
        for start in range(0, len(points.extra_time), BLOCK):
            block = np.arange(start, min(start + BLOCK, len(points.extra_time)))
            # Step 2: drop the points of the block that an earlier point dominates, then those within the block.
            if len(left):
                block = block[~self._dominated(points, left, block).any(axis=0)]
            among = np.triu(self._dominated(points, block, block), 1)
            left = np.concatenate([left, block[~among.any(axis=0)]])
        # Step 3: too many points are thinned out evenly.
        if len(left) > self.most_followed:
            left = even_places(left, points.freed_bytes, self.most_followed)
        return points_at(points, left)

    def _order(self, points: Points) -> Array:
        """An order in which each point comes after all points that dominate it."""
        keys = [
            points.transit_bytes,
            points.first_backward_bytes,
            points.input_grad_workspace_bytes,
            points.workspace_bytes,
            -points.freed_bytes,
        ]
        if self.hosted:
            keys.append(points.host_bytes)
        if self.timed:
            left = points.leaving_time + points.coming_time
            keys = [left, *keys, _effort(points), points.extra_time]
        return np.lexsort(keys)

    def _dominated(self, points: Points, those: Array, others: Array) -> Array:
        """Whether each among `those` dominates each among `others`, shape (those, others)."""

        def pairs(sizes: Array) -> tuple[Array, Array]:
            return sizes[those][:, None], sizes[others][None, :]

        # Step 1: no worse in bytes. A column of zeros cannot tell points apart, and is skipped.
        a, b = pairs(points.freed_bytes)
        found = a >= b
        for sizes in (
            points.workspace_bytes,
            points.input_grad_workspace_bytes,
            points.first_backward_bytes,
            points.transit_bytes,
        ):
            if sizes.any():
                a, b = pairs(sizes)
                found &= a <= b
        if self.hosted:
            a, b = pairs(points.host_bytes)
            found &= a <= b
        if not self.timed:
            return found
        # Step 2: fewer seconds, even if a waits for all that its copies have left beyond those of b.
        fewer = np.zeros_like(found)
        for added, waiting, near in self._seconds(points):
            seconds, limit = pairs(added)
            for left in waiting:
                if left.any():
                    a, b = pairs(left)
                    seconds = seconds + np.maximum(a - b, 0.0)
            found &= seconds <= limit * (1 + near)
            fewer |= seconds < limit * (1 - near)
        # Step 3: equal seconds go by bytes on the host and changed layers.
        a, b = pairs(_effort(points))
        return found & (fewer | (a <= b))

    def _seconds(self, points: Points) -> list[tuple[Array, list[Array], float]]:
        """The sums of seconds that count, each with the copies that it may wait for, and when two are equal."""
        leaving, coming = points.leaving_time, points.coming_time
        if not self.apart or not (points.forward_wait.any() or leaving.any()):
            return [(points.extra_time, [leaving, coming], 0.0)]
        backward = points.extra_time - points.forward_wait
        return [(points.forward_wait, [leaving], ROUNDING), (backward, [coming], ROUNDING)]


@functools.lru_cache(maxsize=128)
def frontier(growth: Growth, layers: tuple[StageLayer, ...], *, with_policies: bool) -> Points:
    """A stage's frontier. Stages with identical layers share one."""
    points = no_layers(with_policies=with_policies)
    for at, layer in enumerate(layers):
        points = growth.grow(points, layer, at)
    return growth.ended(points)


def _effort(points: Points) -> Array:
    """The order among points with equal seconds: by bytes on the host, then by changed layers."""
    return points.host_bytes * (1 + points.changed_layers.max()) + points.changed_layers
