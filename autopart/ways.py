"""What may become of the stash of each layer, and what each way changes.

    keep        it stays on the device from forward to backward
    recompute   it is given up, and the layer's whole forward runs again in backward
    selective   as recompute, but only the cheap part of the layer runs again; the rest stays
    offload     it waits in the memory of the host, and comes back for the backward

Whatever is given up is back on the device while the layer's own backward runs. What the layer takes stays in
any case: where it runs again that includes each value that the stage makes and that no backward needs.
"""

import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Literal, NamedTuple

from autopart.graph import Layer, LayerGraph, positions
from autopart.problem import CLASSIC, Demands
from autopart.stage_load import may_wait, own_results, whole_transients

WayName = Literal["keep", "recompute", "selective", "offload"]
WAYS: tuple[WayName, ...] = ("keep", "recompute", "selective", "offload")


class StageWays(NamedTuple):
    """The positions of a stage's layers that are not simply kept, each in one of three lists, and whether
    its optimizer state lies on the host."""

    recompute: tuple[int, ...] = ()
    selective: tuple[int, ...] = ()
    offload: tuple[int, ...] = ()
    optimizer_on_host: bool = False


class Way(NamedTuple):
    """One way of one layer in a stage."""

    name: WayName
    extra_time: float
    """Seconds added to the layer's backward."""
    freed_bytes: int
    """Of the stash, for each microbatch in flight; below 0 where what now stays is larger."""
    back_bytes: int
    """On the device beside the layer's workspace while it runs, and not for each microbatch in flight."""
    moved_bytes: int
    """To the host and back, for each microbatch."""
    copy_time: float
    """Seconds of the way of `moved_bytes`, in one direction."""
    again_bytes: int
    """Where its forward runs again, what that holds beside `back_bytes` more than the workspace: gradients wait, and
    a result that the layer keeps itself is there twice where the stage has sent the first one on."""
    kept_bytes: int
    """Of the stash inside the layer, and of what it makes stay of the values that it takes, what stays on the
    device: it is not there while layers before this one run, in F not yet, in B no longer."""


class HostWay(NamedTuple):
    """How the stash of layers gets to the host."""

    copy_time: Callable[[int], float]
    """Seconds of so many bytes, in one direction."""
    overlaps: bool
    """Whether copies run beside compute."""


class Step(NamedTuple):
    """One more layer of a stage: what hides a copy, and the layer's ways."""

    forward_time: float
    """0 where nothing hides a copy."""
    backward_time: float
    workspace_bytes: int
    """With the gradients of values that lie in the stage while it runs."""
    waiting_bytes: int
    """Gradients of tied parameters that its backward leaves waiting for a layer before."""
    ways: tuple[Way, ...]


def allowed_ways(layer: Layer, demands: Demands) -> tuple[WayName, ...]:
    """The ways that the demands leave a layer, at least one: what is named goes before what is asked of
    all, and a layer keeps its stash where nothing else can be done with it."""
    named = {
        "keep": demands.keep_layers,
        "recompute": demands.recompute_layers,
        "selective": demands.selective_layers,
        "offload": demands.offload_layers,
    }
    able = able_ways(layer)
    for way in WAYS:
        if layer.name in named[way]:
            return (way,) if way in able else ("keep",)
    must = {
        "recompute": demands.recompute == "always",
        "selective": demands.recompute == "selective",
        "offload": demands.offload == "always",
    }
    for way in able[1:]:
        if must[way]:
            return (way,)
    may = {
        "keep": True,
        "recompute": demands.recompute == "auto",
        "selective": demands.recompute == "auto",
        "offload": demands.offload == "auto",
    }
    return tuple(way for way in able if may[way])


def able_ways(layer: Layer) -> tuple[WayName, ...]:
    """What the profile says can be done with a layer's stash; keeping it first."""
    able = {
        "keep": True,
        "recompute": layer.recompute is not None,
        "selective": layer.selective is not None,
        "offload": layer.stash_bytes > 0,
    }
    return tuple(way for way in WAYS if able[way])


def leaves_choice(demands: Demands) -> bool:
    """Whether any layer's stash may be anything but kept, or optimizer state lie on the host."""
    named = demands.recompute_layers or demands.selective_layers or demands.offload_layers
    others = demands.recompute != "never" or True in places_of_state(demands)
    return others or may_offload(demands) or bool(named)


def may_offload(demands: Demands) -> bool:
    """Whether any layer may be offloaded."""
    return demands.offload != "never" or bool(demands.offload_layers)


def places_of_state(demands: Demands) -> tuple[bool, ...]:
    """Whether the demands let optimizer state lie on the host, False, True or both."""
    return {"never": (False,), "auto": (False, True), "always": (True,)}[demands.offload_optimizer]


def can_treat(schedule: str) -> bool:
    """Whether layers are recomputed or offloaded under a schedule: those with one stage a rank and whole
    backwards. A split backward brings the stash back at I, and holds it until W; where a rank has several
    stages, they share what is left beside their state."""
    return schedule in CLASSIC


def most_freed(graph: LayerGraph, demands: Demands) -> list[int]:
    """Of the stash inside each layer, for one microbatch, the most that the demands let go."""
    return [
        la.stash_bytes - min(kept_inside(la, way) for way in allowed_ways(la, demands))
        for la in graph.layers
    ]


def demands_for(graph: LayerGraph, ways: Iterable[StageWays]) -> Demands:
    """The demands that leave exactly these ways."""
    layers, names = graph.layers, {"recompute": (), "selective": (), "offload": ()}
    for own in ways:
        for way in names:
            names[way] += tuple(layers[at].name for at in getattr(own, way))
    return Demands(
        recompute_layers=names["recompute"],
        selective_layers=names["selective"],
        offload_layers=names["offload"],
    )


class Steps:
    """The layers of one graph as steps of a stage, under one user's demands."""

    def __init__(self, graph: LayerGraph, demands: Demands, host: HostWay | None) -> None:
        """`host` is how layers may be offloaded: nothing is where it is None."""
        self.layers, self.demands, self.host = graph.layers, demands, host
        self.transients = whole_transients(graph)
        self._pending = may_wait(graph)
        place = positions(graph)
        self.taken: list[list[tuple[int, int]]] = [[] for _ in graph.layers]
        """Of each layer the values that it takes and no backward needs: who makes them, and their bytes. What lies
        in the storage of a value that a backward needs is kept with that one."""
        kept = {value.name for value in graph.values if value.kept_by}
        for value in graph.values:
            for name in (
                set(value.consumers) if kept.isdisjoint((value.name, value.part_of)) else ()
            ):
                self.taken[place[name]].append((place[value.producer], value.bytes))
        self._results = [
            [(tuple(place[name] for name in value.consumers), value.bytes) for value in own]
            for own in own_results(graph)
        ]
        self._tied = [
            (sorted({place[name] for name in tied.layers}), tied.grad_bytes) for tied in graph.tied
        ]
        self._made: dict[tuple[int, int, int, int, int, WayName | None], Step] = {}

    @functools.cached_property
    def around(self) -> tuple[tuple[int, ...], ...]:
        """Of each layer the positions of the others on which its step depends."""
        return tuple(map(self._around, range(len(self.layers))))

    def _around(self, at: int) -> tuple[int, ...]:
        found = {producer for producer, _ in self.taken[at]}
        found.update(*(readers for readers, _ in self._results[at]))
        found.update(*(holders for holders, _ in self._tied if at in holders))
        for value in self._pending[at]:
            found.update(value.readers, value.others)
            found.update(() if value.producer is None else (value.producer,))
        return tuple(sorted(found - {at}))

    def step(self, at: int, is_inside: Sequence[bool] | Any, given: WayName | None = None) -> Step:
        """The layer at position `at`, with one given way or all that the demands leave it; `is_inside` says
        of each layer whether it lies in the stage."""
        newly_kept = sum(size for producer, size in self.taken[at] if is_inside[producer])
        waits = sum(
            size
            for holders, size in self._tied
            if at in holders and any(is_inside[other] for other in holders if other < at)
        )
        pending = self._gradients(at, is_inside)
        sent = sum(
            size
            for readers, size in self._results[at]
            if not all(is_inside[other] for other in readers)
        )
        key = (at, newly_kept, waits, pending, sent, given)
        if key not in self._made:
            self._made[key] = self._step(*key)
        return self._made[key]

    def _gradients(self, at: int, is_inside: Sequence[bool] | Any) -> int:
        """`stage_load.pending_gradients` of one layer of a stage."""
        return sum(
            value.bytes
            for value in self._pending[at]
            if (not value.readers or any(is_inside[other] for other in value.readers))
            and (not value.others or any(is_inside[other] for other in value.others))
            and (value.producer is None or not is_inside[value.producer])
        )

    def _step(
        self,
        at: int,
        newly_kept: int,
        waits: int,
        pending: int,
        sent: int,
        given: WayName | None,
    ) -> Step:
        layer = self.layers[at]
        workspace = self.transients[at].beside(pending).most_bytes
        again = self.transients[at].again(pending + sent).most_bytes
        allowed = (given,) if given else allowed_ways(layer, self.demands)
        ways = [
            self._way(layer, name, newly_kept, again - workspace)
            for name in allowed
            if self.host or name != "offload"
        ]
        useful = [way for way in ways if way.name == "keep" or way.freed_bytes > 0]
        offloads = given is not None or may_offload(self.demands)
        hides = offloads and self.host is not None and self.host.overlaps
        backward = layer.input_grad_time + layer.weight_grad_time
        return Step(
            forward_time=layer.forward_time if hides else 0.0,
            backward_time=backward if hides else 0.0,
            workspace_bytes=workspace,
            waiting_bytes=waits,
            ways=tuple(useful or ways),
        )

    def _way(self, layer: Layer, name: WayName, newly_kept: int, beside: int) -> Way:
        kept = kept_inside(layer, name)
        freed = layer.stash_bytes - kept
        if name == "offload":
            assert self.host is not None
            return Way(name, 0.0, freed, freed, freed, self.host.copy_time(freed), 0, 0)
        again = {"recompute": layer.recompute, "selective": layer.selective}.get(name)
        if again is None:
            return Way(name, 0.0, 0, 0, 0, 0.0, 0, kept)
        return Way(
            name, again.extra_time, freed - newly_kept, freed, 0, 0.0, beside, kept + newly_kept
        )


def kept_inside(layer: Layer, way: WayName) -> int:
    """Of what a layer keeps inside itself, the bytes that stay on the device for each microbatch."""
    again = {"recompute": layer.recompute, "selective": layer.selective}.get(way)
    if way == "offload":
        return 0
    return again.stash_bytes if again else layer.stash_bytes


def way_of(ways: StageWays, at: int) -> WayName:
    """The way of the layer at position `at`."""
    for name in WAYS[1:]:
        if at in getattr(ways, name):
            return name
    return "keep"


def ways_of_bits(members: Collection[int], chosen: int) -> StageWays:
    """The ways of a stage's layers from a whole number: of the p-th layer (from 0) the bits 2p and 2p + 1
    say which of `WAYS` it goes."""
    found: dict[str, tuple[int, ...]] = {}
    for place, at in enumerate(sorted(members)):
        way = WAYS[chosen >> 2 * place & 3]
        found[way] = (*found.get(way, ()), at)
    return StageWays(
        found.get("recompute", ()), found.get("selective", ()), found.get("offload", ())
    )
