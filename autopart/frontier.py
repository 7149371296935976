"""Which way each layer of a stage goes: the exact Pareto frontier of seconds and bytes.

Symbols   l        a layer of the stage, in the order of execution; F_l, B_l its forward and backward
          x_l      seconds that its way adds to its backward
          g_l      bytes per microbatch that its way frees
         k_l      bytes per microbatch that its way leaves inside it, less the gradients of tied parameters that
                  its backward leaves waiting for a layer before
          r_l      bytes that its way puts beside its workspace w_l while l runs (autopart/ways.py); w_l has the
                  gradients of values that lie in the stage meanwhile
          c_l      seconds of the way of its stash to the host, or back
          p        bytes of the stash of the offloaded layer before l, 0 where there is none

**The way to the host.** One layer is in transit in each direction. In forward the stash of an offloaded layer
leaves when the layer has run; when the next offloaded layer has run, or the forward ends, the rank waits for
what is still on its way. With t, what is left of the last copy, each layer does

    t := max(0, t - F_l);     if l is offloaded:  wait t,  t := c_l;     at the end:  wait t             (1)

In backward the last offloaded layer's stash starts to come at once, that of each other one when the backward
of the next offloaded layer starts, and a layer's backward waits for its own. So the copy of l has all layers
behind l up to the next offloaded one, that one included, to hide beneath: the same ones as in forward, and (1)
with B_l + x_l for F_l gives the backward's waits from the same pass. Where the link does not overlap
with compute, no time is taken off t. What comes back is on the device from then on, so that the room is

    u = max over l of  w_l + r_l + p - sum of k_j over the layers j behind l                             (2)

above the stage's whole stash (in forward p is leaving beside the layer that runs, and the layers behind it have
not kept anything yet; in backward they have freed it). So u := max(u - k_l, w_l + r_l + p), layer by layer, which
grows with u. Nothing crosses the ends of an action.

**The frontier.** A point of the first layers of a stage has the seconds that it adds to the rank's work, waits
both ways and all x_l together; the freed bytes; u; p; t of forward and of backward; the bytes on the host; and the
layers that are not simply kept. It is built layer by layer (Nemhauser and Ullmann, Management Science 15, 1969):
each point once with every way of the next layer, and dominated points dropped. Point a dominates b if

    seconds_a + max(0, t_a - t_b) forward + the same backward <= seconds_b      and a is no worse in the others

where of points with equal seconds the one with fewer bytes on the host, then with fewer layers treated, counts as
faster. The bytes on the host are one of the others too, where its memory may bind.

*Claim.* For every continuation of b, the same one of a is no worse. *Proof.* All numbers but the waits grow
alike. By (1) the waits of a continuation grow with t, and by no more than t does: each step maps t to
max(0, t - F_l), which brings two values no further apart, and a wait that t pays leaves both at c_l. Where seconds
are equal in the end they were equal before, and bytes and layers have kept their order. ∎
So the frontier holds, for every limit of bytes, a choice with the fewest seconds that the rank is busy, and of those
one that moves the fewest bytes and treats the fewest layers.

Of identical layers only how many go each way, and how far the offloaded ones lie apart, makes a difference: all
other choices have the same point and are dropped. Layers that all differ can have 2^n points: past `most_points`
an even selection stays, which holds both ends. O(points²) for each layer that is added, in blocks.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.graph import Layer
from autopart.stage_load import Number, StageLoad
from autopart.ways import WAYS, Step, Way

Array = npt.NDArray[Any]

FEW_KINDS = 8
"""Kinds of layers up to which stages are few that differ, so that more points of each can be followed."""
BLOCK = 256
"""Points that are compared at once with those that stay."""


class Points(NamedTuple):
    """Choices of one stage, the one with the fewest extra seconds first; of equal ones that with the fewest bytes
    on the host, then that with the fewest layers treated."""

    extra_time: Array
    """Seconds that they add to the rank's work for a microbatch, forward and backward together."""
    forward_wait: Array
    """The part of `extra_time` that the forward waits for the host."""
    freed_bytes: Array
    """Of the stash, for each microbatch in flight."""
    workspace_bytes: Array
    transit_bytes: Array
    """Of the last offloaded layer."""
    leaving_time: Array
    """What is left of its way to the host where the layers so far have run."""
    coming_time: Array
    """The same of its way back."""
    host_bytes: Array
    """On the host, for each microbatch in flight."""
    treated_layers: Array
    """How many layers are not simply kept."""
    chosen: Array | None
    """The ways as the bits of a whole number (`ways.ways_of_bits`). None where only the numbers are asked
    for."""


def most_points(layers: Iterable[Layer]) -> int:
    """Points of a stage that are followed: more than repeated blocks have, and where all layers differ, so
    that every stage has a frontier of its own, what can be grown in seconds."""
    kinds = {(la.kind, la.forward_time, la.stash_bytes) for la in layers}
    return 4096 if len(kinds) <= FEW_KINDS else 512


class Choice(NamedTuple):
    """One point of a stage, or of each of several stages: what `Points` says of it."""

    extra_time: Number
    forward_wait: Number
    freed_bytes: Number
    workspace_bytes: Number
    host_bytes: Number


class Limits(NamedTuple):
    """What a rank may hold while `held` microbatches are in flight."""

    held: int
    device_bytes: int
    host_bytes: int | None


def no_layers(with_choice: bool = False) -> Points:
    """The frontier of no layers."""
    seconds, sizes = np.zeros(1), np.zeros(1, dtype=np.int64)
    chosen = np.zeros(1, dtype=object) if with_choice else None
    return Points(seconds, seconds, sizes, sizes, sizes, seconds, seconds, sizes, sizes, chosen)


class Growth(NamedTuple):
    """How frontiers grow by a layer."""

    timed: bool = True
    """By seconds and bytes, or by bytes alone."""
    hosted: bool = False
    """Whether the memory of the host may bind."""
    most_points: int = 512
    """Points of a stage that are followed."""

    def grow(self, points: Points, step: Step, at: int = 0) -> Points:
        """The frontier with one more layer, the one at `at` in the stage."""
        ways = [self._gone(points, step, way, at) for way in step.ways]
        return ways[0] if len(ways) == 1 else self.undominated(_joined(ways))

    def ended(self, points: Points) -> Points:
        """The frontier of a stage that ends here: what is still on its way is waited for."""
        nothing, none = np.zeros_like(points.extra_time), np.zeros_like(points.host_bytes)
        waited = points._replace(
            extra_time=points.extra_time + points.leaving_time + points.coming_time,
            forward_wait=points.forward_wait + points.leaving_time,
            transit_bytes=none,
            leaving_time=nothing,
            coming_time=nothing,
        )
        return self.undominated(waited) if points.transit_bytes.any() else points

    def _gone(self, points: Points, step: Step, way: Way, at: int) -> Points:
        """The points with one more layer that goes one way."""
        leaving = np.maximum(points.leaving_time - step.forward_time, 0.0)
        coming = points.coming_time
        if step.backward_time:
            coming = np.maximum(coming - step.backward_time - way.extra_time, 0.0)
        room = step.workspace_bytes + way.back_bytes + way.again_bytes + points.transit_bytes
        before = points.workspace_bytes - way.kept_bytes + step.waiting_bytes
        moved = points._replace(
            extra_time=points.extra_time + way.extra_time,
            freed_bytes=points.freed_bytes + way.freed_bytes,
            workspace_bytes=np.maximum(before, room),
            leaving_time=leaving,
            coming_time=coming,
            treated_layers=points.treated_layers + (way.name != "keep"),
            chosen=None
            if points.chosen is None
            else points.chosen | (WAYS.index(way.name) << 2 * at),
        )
        if not way.moved_bytes:
            return moved
        return moved._replace(
            extra_time=moved.extra_time + leaving + coming,
            forward_wait=moved.forward_wait + leaving,
            transit_bytes=np.full_like(moved.transit_bytes, way.moved_bytes),
            leaving_time=np.full_like(leaving, way.copy_time),
            coming_time=np.full_like(coming, way.copy_time),
            host_bytes=moved.host_bytes + way.moved_bytes,
        )

    def undominated(self, points: Points) -> Points:
        """Without dominated points, and with no more than `most_points`."""
        points = _at(points, self._order(points))
        left = np.zeros(0, dtype=np.int64)
        for start in range(0, len(points.extra_time), BLOCK):
            block = np.arange(start, min(start + BLOCK, len(points.extra_time)))
            if len(left):
                block = block[~self._dominated(points, left, block).any(axis=0)]
            among = np.triu(self._dominated(points, block, block), 1)
            left = np.concatenate([left, block[~among.any(axis=0)]])
        if len(left) > self.most_points:
            left = _even(left, points.freed_bytes, self.most_points)
        return _at(points, left)

    def _order(self, points: Points) -> Array:
        """Every point behind those that dominate it."""
        keys = [points.transit_bytes, points.workspace_bytes, -points.freed_bytes]
        if self.hosted:
            keys.append(points.host_bytes)
        if self.timed:
            left = points.leaving_time + points.coming_time
            keys = [left, *keys, _effort(points), points.extra_time]
        return np.lexsort(keys)

    def _dominated(self, points: Points, those: Array, others: Array) -> Array:
        """Boolean, shape (those, others): whether one of `those` dominates one of `others`."""

        def pairs(sizes: Array) -> tuple[Array, Array]:
            return sizes[those][:, None], sizes[others][None, :]

        a, b = pairs(points.freed_bytes)
        found = a >= b
        for sizes in (points.workspace_bytes, points.transit_bytes):
            if sizes.any():
                a, b = pairs(sizes)
                found &= a <= b
        if self.hosted:
            a, b = pairs(points.host_bytes)
            found &= a <= b
        if not self.timed:
            return found
        seconds, limit = pairs(points.extra_time)
        for left in (points.leaving_time, points.coming_time):
            if left.any():
                a, b = pairs(left)
                seconds = seconds + np.maximum(a - b, 0.0)
        a, b = pairs(_effort(points))
        return found & ((seconds < limit) | ((seconds == limit) & (a <= b)))


@functools.lru_cache(maxsize=128)
def frontier(growth: Growth, steps: tuple[Step, ...], *, with_choice: bool) -> Points:
    """The frontier of a stage of the given layers: the same for stages of identical layers."""
    points = no_layers(with_choice)
    for at, step in enumerate(steps):
        points = growth.grow(points, step, at)
    return growth.ended(points)


def best_point(points: Points, beside: int, limits: Limits) -> int:
    """The place of the first point that fits, which takes the fewest extra seconds; of the one with the fewest
    bytes, where none does. `beside` are the stage's bytes on the device but for what its ways change."""
    sizes = points.workspace_bytes, points.freed_bytes, points.host_bytes
    needed, fits = needs(*sizes, beside, limits)
    return int(np.argmax(fits) if fits.any() else np.argmin(needed))


def needs(
    workspace: Array, freed: Array, hosted: Array, beside: int | Array, limits: Limits
) -> tuple[Array, Array]:
    """The bytes that points need on the device, and whether they fit. Where the host has no room, its bytes
    are counted to the device's, so that such a point is not the one with the fewest."""
    needed = beside + workspace - limits.held * freed
    fits = needed <= limits.device_bytes
    if limits.host_bytes is None:
        return needed, fits
    beyond = limits.held * hosted > limits.host_bytes
    return needed + beyond * limits.held * hosted, fits & ~beyond


def choice_at(points: Points, place: int) -> Choice:
    """One of the points, in plain numbers."""
    return Choice(*(getattr(points, name)[place].item() for name in Choice._fields))


CHANGED_FIELDS = (
    "forward_time",
    "backward_time",
    "stash_bytes",
    "inner_stash_bytes",
    "workspace_bytes",
    "host_bytes",
)
"""What `treat` changes of a load."""


def treat(load: StageLoad, choice: Choice) -> StageLoad:
    """The load of a stage, or of several side by side, with the layers treated as chosen."""
    treated = treat_sums(load, choice)
    inner = np.minimum(load.inner_stash_bytes, treated.stash_bytes)
    return treated._replace(inner_stash_bytes=inner)


def treat_sums(load: StageLoad, choice: Choice) -> StageLoad:
    """`treat` but for `inner_stash_bytes`; of the affine expressions of an integer program too."""
    return load._replace(
        forward_time=load.forward_time + choice.forward_wait,
        backward_time=load.backward_time + choice.extra_time - choice.forward_wait,
        stash_bytes=load.stash_bytes - choice.freed_bytes,
        workspace_bytes=choice.workspace_bytes,
        host_bytes=choice.host_bytes,
    )


def _effort(points: Points) -> Array:
    """What decides between choices that take the same seconds: bytes on the host first, then treated layers."""
    return points.host_bytes * (1 + points.treated_layers.max()) + points.treated_layers


def _joined(ways: Sequence[Points]) -> Points:
    *columns, chosen = zip(*ways, strict=True)
    return Points(
        *(np.concatenate(column) for column in columns),
        chosen=None if chosen[0] is None else np.concatenate(chosen),
    )


def _at(points: Points, places: Array) -> Points:
    *columns, chosen = points
    kept = [column[places] for column in columns]
    return Points(*kept, chosen=None if chosen is None else chosen[places])


def _even(left: Array, freed: Array, most: int) -> Array:
    """`most` of the points `left`, spread over the bytes that they free; still in their order."""
    by_bytes = left[np.argsort(freed[left], kind="stable")]
    places = np.linspace(0, len(left) - 1, most).astype(int)
    return np.sort(by_bytes[places])
