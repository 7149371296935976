"""Transient bytes: bytes that a layer needs only while it runs, in forward, backward and split backward.

An action counts its stage's whole stash. So a transient counts above that stash. While earlier
layers run, some stash bytes do not exist yet, or are freed already (autopart/cost/workspaces.py).
"""

from collections.abc import Sequence
from typing import NamedTuple

from autopart.records.layer_graph import Layer, LayerGraph, SplitBackward, Value, edges, positions


class Transient(NamedTuple):
    """One layer's transient bytes in one kind of action."""

    most_bytes: int
    """The most bytes above those from before, while the layer runs."""
    less_bytes: int
    """Stash bytes that are not there while earlier layers run: in F they do not exist yet, in B they are freed."""
    backward_bytes: int | None = None
    """`most_bytes` in the backward alone, without `waiting_gradients`; None where `most_bytes` includes them."""

    def with_gradients(self, gradients: int) -> "Transient":
        """The transient beside so many gradient bytes in its backward."""
        if self.backward_bytes is None:
            return self
        return Transient(max(self.most_bytes, self.backward_bytes + gradients), self.less_bytes)

    def recomputed(self, gradients: int) -> "Transient":
        """The same where the layer's forward runs again in its backward, also beside the gradients."""
        if self.backward_bytes is None:
            return self
        most = max(self.most_bytes, self.backward_bytes)
        return Transient(most + gradients, self.less_bytes)


def whole_transients(graph: LayerGraph) -> list[Transient]:
    """For each layer the transient in F and in a whole backward.

    While a layer runs, later layers have made no stash yet (F), or have freed it (B). That holds for stash inside
    layers. Values may be needed by earlier layers, and stay.
    """
    return [
        Transient(la.workspace_bytes, la.stash_bytes, la.backward_workspace_bytes)
        for la in graph.layers
    ]


def input_grad_transients(graph: LayerGraph) -> list[Transient]:
    """For each layer the transient in I: later layers have left W's bytes in place of their stash."""
    return [
        Transient(la.workspace_bytes, 0, la.backward_workspace_bytes)
        if la.split_backward is None
        else _input_grad_transient(la, la.split_backward)
        for la in graph.layers
    ]


def _input_grad_transient(layer: Layer, split: SplitBackward) -> Transient:
    most, less = split.input_grad_workspace_bytes, layer.stash_bytes - split.waiting_bytes
    if layer.backward_workspace_bytes is None:
        return Transient(most, less)
    return Transient(0, less, most)


def weight_grad_transients(graph: LayerGraph) -> list[Transient]:
    """For each layer the transient in W, which runs the last layer first: later layers have freed W's bytes."""
    return [
        Transient(la.workspace_bytes, 0, la.backward_workspace_bytes)
        if la.split_backward is None
        else Transient(
            la.split_backward.weight_grad_workspace_bytes, la.split_backward.waiting_bytes
        )
        for la in graph.layers
    ]


def own_results(graph: LayerGraph) -> list[list[Value]]:
    """For each layer the values that it makes and keeps itself, as a ReLU does."""
    place = positions(graph)
    found: list[list[Value]] = [[] for _ in graph.layers]
    for value in filter(_is_own_result, graph.values):
        found[place[value.producer]].append(value)
    return found


def held_results(graph: LayerGraph, members: Sequence[int]) -> tuple[str, ...]:
    """The own results that a stage with some layers sends on. It keeps them until their backward."""
    inside, place = set(members), positions(graph)
    return tuple(
        value.name
        for value in graph.values
        if _is_own_result(value)
        and place[value.producer] in inside
        and any(place[name] not in inside for name in value.consumers)
    )


def _is_own_result(value: Value) -> bool:
    return value.producer in value.kept_by


class WaitingGradient(NamedTuple):
    """Gradient bytes that may be there when one layer's backward starts, and the stages on which they are."""

    readers: tuple[int, ...]
    """Later layers, at least one on the stage: the gradient comes from there. Empty where any stage will do."""
    producer: int | None
    """The value's maker, not on the stage: its backward would have freed the gradient. None where any stage will do."""
    others: tuple[int, ...]
    """Further layers, at least one on the stage. Empty where any stage will do."""
    bytes: int


def waiting_gradients(graph: LayerGraph) -> list[list[WaitingGradient]]:
    """For each layer the gradients that may be there when its backward starts, and did not come from the next stage.

    A value's gradient is there once a later layer on the stage has run its backward, if that layer reads the value.
    It stays until the maker's backward is done, or until the whole stage's where the maker is elsewhere. Larger tensors
    that a gradient keeps alive stay until the stage's first layer with the value has run.

    A layer that keeps its own result frees it together with the incoming gradient, and was measured so. Where the
    result is sent on, the stage keeps it and only the gradient goes: then the gradient's bytes count for it.
    """
    place, behind = positions(graph), _descendants(graph)
    found: list[dict[tuple[tuple[int, ...], int | None, tuple[int, ...]], int]]
    found = [{} for _ in graph.layers]
    known = any(la.backward_workspace_bytes is not None for la in graph.layers)
    for value in graph.values if known else ():
        made, readers = place[value.producer], sorted({place[name] for name in value.consumers})
        # Step 1: an own result counts on any stage, with or without a gradient.
        own = made if _is_own_result(value) else None
        if own is not None:
            found[own][(), None, ()] = found[own].get(((), None, ()), 0) + value.bytes
        for at in range(readers[-1] if value.has_gradient and readers else 0):
            # Step 2: the gradient itself. A stage with this layer and a reader has all layers between them, so a
            # maker behind this layer is on the stage, and has freed the gradient.
            if at != own and (at >= made or not behind[at] >> made & 1):
                later = tuple(r for r in readers if r > at)
                key = later, made if at < made else None, ()
                found[at][key] = found[at].get(key, 0) + value.bytes
            # Step 3: a larger tensor that it keeps alive.
            later = tuple(place[name] for name in value.grad_extra_by if place[name] > at)
            if later and at >= made:
                key = later, None, tuple(r for r in (made, *readers) if r <= at)
                found[at][key] = found[at].get(key, 0) + value.grad_extra_bytes
    return [[WaitingGradient(*key, size) for key, size in own.items()] for own in found]


def tied_sums(graph: LayerGraph) -> list[list[WaitingGradient]]:
    """For each layer the sums of tied gradients that its whole backward makes, and the stages on which it does.

    The first sum is a tensor of its own, beside the gradient that waits and the layer's own gradient. Autograd adds in
    place only where nothing else knows the gradient's storage: a transposed product's gradient is a view of another.
    """
    place = positions(graph)
    found: list[list[WaitingGradient]] = [[] for _ in graph.layers]
    for tied in graph.tied:
        holders = sorted({place[name] for name in tied.layers})
        for number, at in enumerate(holders[:-1], 1):
            if tied.grad_bytes:
                later = tuple(holders[number:])
                found[at].append(WaitingGradient(later, None, (), tied.grad_bytes))
    return found


def gradients_in_whole_backward(graph: LayerGraph) -> list[list[WaitingGradient]]:
    """For each layer all gradients beside it in a whole backward: `waiting_gradients` and `tied_sums`."""
    pairs = zip(waiting_gradients(graph), tied_sums(graph), strict=True)
    return [waiting + sums for waiting, sums in pairs]


def _descendants(graph: LayerGraph) -> list[int]:
    """For each layer the layers that need it, directly or through others, as bits in a number."""
    behind = [0] * len(graph.layers)
    for u, w in reversed(edges(graph)):
        behind[u] |= 1 << w | behind[w]
    return behind


def counts_gradients(graph: LayerGraph) -> bool:
    """Whether the profile gives each layer's backward transient without gradients."""
    return all(la.backward_workspace_bytes is not None for la in graph.layers)


def has_split_backward(graph: LayerGraph) -> bool:
    """Whether the profile gives each layer's bytes for W; else the whole stash is assumed to stay until W."""
    return all(la.split_backward is not None for la in graph.layers)
