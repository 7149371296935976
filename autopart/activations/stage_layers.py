"""Layers on a stage: their seconds and bytes under each policy that they may have.

Frontiers (autopart/activations/frontier.py) and integer programs (autopart/solvers/ilp/policies.py) take these figures.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.activations.policies import (
    PolicyName,
    allowed_policies,
    kept_inside,
    may_offload,
)
from autopart.cost.links import StashCopies, stash_copies
from autopart.cost.stage_totals import layer_sizes
from autopart.cost.transients import (
    WaitingGradient,
    gradients_in_whole_backward,
    input_grad_transients,
    own_results,
    waiting_gradients,
    whole_transients,
)
from autopart.records.cluster import HostLink
from autopart.records.layer_graph import Layer, LayerGraph, positions
from autopart.records.problem import Demands


class LayerPolicy(NamedTuple):
    """Seconds and bytes that one policy for one layer changes in its stage."""

    name: PolicyName
    extra_time: float
    """Seconds added to the layer's backward."""
    freed_bytes: int
    """Stash freed for each microbatch in flight; below 0 where more stays than is freed."""
    returned_bytes: int
    """Bytes that return beside the layer's workspace while it runs, for one microbatch at a time."""
    moved_bytes: int
    """Bytes copied to the host and back, for each microbatch."""
    copy_time: float
    """Seconds to copy `moved_bytes` in one direction."""
    recompute_bytes: int
    """Bytes that the second forward holds above the layer's workspace and `returned_bytes`.

    Gradients wait beside it. A result that the layer keeps exists twice where the stage has sent the first one on.
    """
    kept_bytes: int
    """Bytes that stay on the device for each microbatch: the layer's own stash, and inputs that it alone keeps alive.

    Earlier layers never run beside them: in forward they do not exist yet, in backward they are already freed.
    """
    input_grad_recompute_bytes: int
    """`recompute_bytes` in I, where the backward is split."""


class StageLayer(NamedTuple):
    """One layer on a stage with its possible policies."""

    forward_time: float
    """Forward seconds that hide a copy; 0 where nothing hides one."""
    backward_time: float
    """Seconds of the whole backward that hide a copy; 0 where nothing hides one."""
    input_grad_time: float
    """The same in I, where the backward is split."""
    workspace_bytes: int
    """Transient bytes, with gradients that lie in the stage while the layer runs."""
    waiting_bytes: int
    """Gradient bytes for tied parameters that the layer's backward leaves waiting for an earlier layer."""
    input_grad_workspace_bytes: int
    """The same as `workspace_bytes` in I, where the backward is split."""
    left_bytes: int
    """Bytes inside the layer that stay from I to W; its whole stash where the profile does not say."""
    made_bytes: int
    """Gradient bytes that its first backward leaves, also of each tied parameter whose first layer here it is."""
    policies: tuple[LayerPolicy, ...]


class TakenValue(NamedTuple):
    """A value that a layer takes, where neither its own backward nor the maker's needs it."""

    producer: int
    """The maker's position."""
    needed_by: tuple[int, ...]
    """Layers whose backward needs the value: it stays on their stage anyway."""
    bytes: int


class _StageFigures(NamedTuple):
    """A layer's figures that depend on the other layers on its stage."""

    newly_kept: int
    """Input bytes that stay only because the layer runs again."""
    waits: int
    """Gradient bytes for tied parameters that wait for an earlier layer."""
    pending: int
    """Gradient bytes from other layers that lie in the stage while the layer's backward runs."""
    pending_in_input_grad: int
    """The same in I, which makes no sums of tied gradients."""
    sent: int
    """Bytes in results that the layer keeps itself and the stage sends on."""
    made: int
    """Gradient bytes of tied parameters whose first layer on the stage it is."""


class StageLayers:
    """A graph's layers under one user's demands, on ranks with one speed."""

    def __init__(self, graph: LayerGraph, demands: Demands, host: StashCopies | None) -> None:
        """`host` says how stash is copied to the host; no layer is offloaded where it is None."""
        self.layers, self.demands, self.host = graph.layers, demands, host
        self.transients = whole_transients(graph)
        self._in_input_grad = input_grad_transients(graph)
        self._pending = gradients_in_whole_backward(graph)
        self._pending_in_input_grad = waiting_gradients(graph)
        place = positions(graph)
        self.taken: list[list[TakenValue]] = [[] for _ in graph.layers]
        """For each layer its inputs."""
        # A value may lie inside another value's storage. Where some backward needs that one, both are kept.
        keepers = {value.name: {place[name] for name in value.kept_by} for value in graph.values}
        for value in graph.values:
            needed_by = keepers[value.name] | keepers.get(value.part_of or "", set())
            own = TakenValue(place[value.producer], tuple(sorted(needed_by)), value.bytes)
            for name in set(value.consumers):
                if place[name] not in needed_by and own.producer not in needed_by:
                    self.taken[place[name]].append(own)
        self._results = [
            [(tuple(place[name] for name in value.consumers), value.bytes) for value in own]
            for own in own_results(graph)
        ]
        self._tied = [
            (sorted({place[name] for name in tied.layers}), tied.grad_bytes) for tied in graph.tied
        ]
        self._unscattered = [tied.unscattered_grad_bytes or 0 for tied in graph.tied]
        sizes = layer_sizes(graph)
        self._made_alone = (sizes.grad_bytes + sizes.unscattered_grad_bytes).tolist()
        self._made: dict[tuple[int, _StageFigures, PolicyName | None], StageLayer] = {}

    @functools.cached_property
    def around(self) -> tuple[tuple[int, ...], ...]:
        """For each layer the positions at which other layers change its figures."""
        return tuple(map(self._positions_around, range(len(self.layers))))

    def _positions_around(self, at: int) -> tuple[int, ...]:
        found = {value.producer for value in self.taken[at]}
        found.update(*(value.needed_by for value in self.taken[at]))
        found.update(*(readers for readers, _ in self._results[at]))
        found.update(*(holders for holders, _ in self._tied if at in holders))
        for value in self._pending[at]:
            found.update(value.readers, value.others)
            found.update(() if value.producer is None else (value.producer,))
        return tuple(sorted(found - {at}))

    def in_stage(
        self,
        at: int,
        is_inside: Sequence[bool] | npt.NDArray[np.bool_],
        given: PolicyName | None = None,
    ) -> StageLayer:
        """The layer at position `at` with one given policy, or with all that the demands leave it.

        `is_inside` says for each layer whether it lies in the stage.
        """
        key = at, self._figures_around(at, is_inside), given
        if key not in self._made:
            self._made[key] = self._stage_layer(*key)
        return self._made[key]

    def _figures_around(
        self, at: int, is_inside: Sequence[bool] | npt.NDArray[np.bool_]
    ) -> _StageFigures:
        return _StageFigures(
            newly_kept=sum(
                value.bytes
                for value in self.taken[at]
                if is_inside[value.producer] and not any(is_inside[l] for l in value.needed_by)
            ),
            waits=sum(
                size
                for holders, size in self._tied
                if at in holders and any(is_inside[other] for other in holders if other < at)
            ),
            pending=_bytes_there(self._pending[at], is_inside),
            pending_in_input_grad=_bytes_there(self._pending_in_input_grad[at], is_inside),
            sent=sum(
                size
                for readers, size in self._results[at]
                if not all(is_inside[other] for other in readers)
            ),
            made=sum(
                size + rest
                for (holders, size), rest in zip(self._tied, self._unscattered, strict=True)
                if at in holders and not any(is_inside[other] for other in holders if other < at)
            ),
        )

    def _stage_layer(self, at: int, around: _StageFigures, given: PolicyName | None) -> StageLayer:
        layer = self.layers[at]
        workspace = self.transients[at].with_gradients(around.pending).most_bytes
        again = self.transients[at].recomputed(around.pending + around.sent).most_bytes
        split, beside = self._in_input_grad[at], around.pending_in_input_grad
        in_input_grad = split.with_gradients(beside).most_bytes
        # The second forward runs in I, with a forward's own transient.
        second = split._replace(most_bytes=max(split.most_bytes, layer.workspace_bytes))
        more = (
            again - workspace,
            second.recomputed(beside + around.sent).most_bytes - in_input_grad,
        )
        policies = [
            self._policy(layer, name, around.newly_kept, more)
            for name in ((given,) if given else allowed_policies(layer, self.demands))
            if self.host or name != "offload"
        ]
        # A policy that frees nothing is dropped, unless it is the only one.
        useful = [policy for policy in policies if policy.name == "keep" or policy.freed_bytes > 0]
        offloads = given is not None or may_offload(self.demands)
        hides = offloads and self.host is not None and self.host.overlaps
        backward = layer.input_grad_time + layer.weight_grad_time
        return StageLayer(
            forward_time=layer.forward_time if hides else 0.0,
            backward_time=backward if hides else 0.0,
            input_grad_time=layer.input_grad_time if hides else 0.0,
            workspace_bytes=workspace,
            waiting_bytes=around.waits,
            input_grad_workspace_bytes=in_input_grad,
            left_bytes=layer.stash_bytes - split.less_bytes,
            made_bytes=self._made_alone[at] + around.made,
            policies=tuple(useful or policies),
        )

    def _policy(
        self, layer: Layer, name: PolicyName, newly_kept: int, more_workspace: tuple[int, int]
    ) -> LayerPolicy:
        """`more_workspace` are the bytes for a second forward in a whole backward and in I."""
        kept = kept_inside(layer, name)
        freed = layer.stash_bytes - kept
        if name == "offload":
            assert self.host is not None
            return LayerPolicy(name, 0.0, freed, freed, freed, self.host.copy_time(freed), 0, 0, 0)
        again = {"recompute": layer.recompute, "selective": layer.selective}.get(name)
        if again is None:
            return LayerPolicy(name, 0.0, 0, 0, 0, 0.0, 0, kept, 0)
        return LayerPolicy(
            name,
            extra_time=again.extra_time,
            freed_bytes=freed - newly_kept,
            returned_bytes=freed,
            moved_bytes=0,
            copy_time=0.0,
            recompute_bytes=more_workspace[0],
            kept_bytes=kept + newly_kept,
            input_grad_recompute_bytes=more_workspace[1],
        )


def _bytes_there(
    waiting: Sequence[WaitingGradient], is_inside: Sequence[bool] | npt.NDArray[np.bool_]
) -> int:
    """Gradient bytes that are there, on a stage with the layers inside."""
    return sum(
        value.bytes
        for value in waiting
        if (not value.readers or any(is_inside[other] for other in value.readers))
        and (not value.others or any(is_inside[other] for other in value.others))
        and (value.producer is None or not is_inside[value.producer])
    )


@functools.lru_cache(maxsize=16)
def stage_layers(
    graph: LayerGraph, demands: Demands, link: HostLink | None, speed: float
) -> StageLayers:
    """A graph's layers on ranks with `speed` relative to the profile's device, with `link` to the host."""
    return StageLayers(graph, demands, stash_copies(link, speed))
