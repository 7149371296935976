"""Waiting gradients and workspace on one stage, as constraints in an integer program.

autopart/solvers/ilp/program.py has the symbols, and constraints (7), (23), (24), (26), (27) and (33).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pulp

from autopart.cost.stage_totals import StageTotals, layer_sizes
from autopart.cost.transients import (
    Transient,
    WaitingGradient,
    gradients_in_whole_backward,
    has_split_backward,
    input_grad_transients,
    own_results,
    waiting_gradients,
    weight_grad_transients,
    whole_transients,
)
from autopart.solvers.ilp.placement import Placement, sum_of
from autopart.units import Quantity


class WaitingTied(NamedTuple):
    """A tied parameter's gradient that one layer's backward leaves waiting."""

    layer: int
    grad_bytes: int
    waits: Quantity
    """again[t, layer, stage] (23)."""


class StageGradients(NamedTuple):
    """Gradients and results that count beside the layers on one stage."""

    tied: Sequence[WaitingTied]
    pending: Sequence[Quantity]
    """For each layer the gradient bytes that are there while its backward runs (24)."""
    pending_in_input_grad: Sequence[Quantity]
    """The same in I, which makes no sums of tied gradients."""
    results: Sequence[Sequence[tuple[int, Quantity]]]
    """For each layer the results that it keeps itself: bytes, and whether the stage sends them on."""
    made: Sequence[Quantity] = ()
    """For each layer the parameter gradients that a first backward has made with it (33); empty where none counts."""


def stage_gradients(placement: Placement, stage: int, *, first: bool = False) -> StageGradients:
    """Add the variables in (23) and (24) for one stage; with `first` also those in (33)."""
    numbers = {value.name: number for number, value in enumerate(placement.graph.values)}
    tied = _waiting_tied(placement, stage)
    pending, in_input_grad = _pending(placement, stage)
    results = [
        [(v.bytes, placement.crosses(numbers[v.name], stage)) for v in own]
        for own in own_results(placement.graph)
    ]
    made = _made(placement, stage) if first else ()
    return StageGradients(tied, pending, in_input_grad, results, made)


def kept_workspace(placement: Placement, stage: int, gradients: StageGradients) -> Quantity:
    """Workspace on a stage whose layers all keep their stash: work[s] in (7)."""
    layers = whole_transients(placement.graph)
    return _workspace(placement, stage, "work", layers, gradients.pending, gradients.tied)


def kept_first_backward(placement: Placement, stage: int, gradients: StageGradients) -> Quantity:
    """Workspace in the first backward of such a stage, with the gradients that it has made (33)."""
    layers = whole_transients(placement.graph)
    return _workspace(
        placement, stage, "first", layers, gradients.pending, gradients.tied, gradients.made
    )


def kept_workspace_in_input_grad(
    placement: Placement, stage: int, gradients: StageGradients
) -> Quantity:
    """Workspace in I on a stage whose layers all keep their stash (26)."""
    layers = input_grad_transients(placement.graph)
    return _workspace(placement, stage, "in_i", layers, gradients.pending_in_input_grad, ())


def workspace_in_weight_grad(
    placement: Placement, stage: int, gradients: StageGradients
) -> Quantity:
    """Workspace in W on a stage, which no policy changes (26)."""
    layers = weight_grad_transients(placement.graph)
    return _workspace(placement, stage, "in_w", layers, gradients.pending_in_input_grad, ())


def waiting_bytes(placement: Placement, stage: int, totals: StageTotals[Quantity]) -> Quantity:
    """Bytes that one microbatch keeps from I to W: (27). `totals` are those where layers keep their stash."""
    graph, program = placement.graph, placement.program
    if not has_split_backward(graph):
        return totals.stash_bytes
    sizes = layer_sizes(graph)

    def summed(per_layer: Sequence[int]) -> Quantity:
        return sum_of(size * placement.on(l, stage) for l, size in enumerate(per_layer) if size)

    inner = summed(sizes.waiting_bytes.tolist())
    if not sizes.waiting_value_bytes.any():
        return inner
    values = totals.stash_bytes - summed(sizes.stash_bytes.tolist())
    needed = summed(sizes.waiting_value_bytes.tolist())
    most = max(sum(value.bytes for value in graph.values), int(sizes.waiting_value_bytes.sum()))
    fewer: Any = program.add_variable(f"fewer_{stage}", 0, 1, cat=pulp.LpInteger)
    kept: Any = program.add_variable(f"kept_for_w_{stage}", 0)
    program += kept >= values * (1 / most) - fewer  # (27)
    program += kept >= needed * (1 / most) - (1 - fewer)  # (27)
    return inner + most * kept


def _workspace(
    placement: Placement,
    stage: int,
    kind: str,
    layers: Sequence[Transient],
    pending: Sequence[Quantity],
    tied: Sequence[WaitingTied],
    made: Sequence[Quantity] = (),
) -> Quantity:
    """The largest transient among a stage's layers that keep their stash, in one kind of action."""
    program = placement.program
    variable: Any = program.add_variable(f"{kind}_{stage}", 0)
    # The variable counts in units of the largest transient, so that coefficients are near 1.
    scale = max(max(layer.most_bytes, layer.backward_bytes or 0) for layer in layers) or 1
    if made:
        scale += sum(la.grad_bytes for la in placement.graph.layers)
    if any(layer.less_bytes < 0 for layer in layers):
        # More stays from I to W than there was stash. So all layers together may need the most.
        program += variable >= 0 - _less(placement, stage, layers, -1, scale)  # (26)
    for at, layer in enumerate(layers):
        behind = _less(placement, stage, layers, at, scale)
        waits = sum_of(own.grad_bytes / scale * own.waits for own in tied if own.layer > at)
        if made:
            waits = waits + made[at] * (1 / scale)
        if layer.most_bytes or made:
            here = layer.most_bytes / scale * placement.on(at, stage)
            program += variable >= here + waits - behind  # (7), (26)
        if layer.backward_bytes is not None:
            own = layer.backward_bytes / scale * placement.on(at, stage)
            here = own + pending[at] * (1 / scale)
            program += variable >= here + waits - behind  # (7), (26)
    return scale * variable


def _less(
    placement: Placement, stage: int, layers: Sequence[Transient], at: int, scale: int
) -> Quantity:
    """Stash bytes of the layers behind one that are not there while it runs, in units of `scale`."""
    return sum_of(
        other.less_bytes / scale * placement.on(place, stage)
        for place, other in enumerate(layers)
        if place > at and other.less_bytes
    )


def _made(placement: Placement, stage: int) -> list[Quantity]:
    """For each layer the parameter gradients that are made once its backward and those behind it have run."""
    graph, program = placement.graph, placement.program
    sizes = layer_sizes(graph)
    alone = (sizes.grad_bytes + sizes.unscattered_grad_bytes).tolist()
    found: list[Quantity] = []
    for at in range(len(alone)):
        own = [size * placement.on(l, stage) for l, size in enumerate(alone[at:], start=at) if size]
        for number, tied in enumerate(graph.tied):
            holders = {placement.position[name] for name in tied.layers}
            variable: Any = program.add_variable(f"done_{number}_{at}_{stage}", 0, 1)
            ahead = sum_of(placement.on(l, stage) for l in holders if l < at)
            for l in holders:
                if l >= at:
                    program += variable >= placement.on(l, stage) - ahead  # (33)
            own.append((tied.grad_bytes + (tied.unscattered_grad_bytes or 0)) * variable)
        found.append(sum_of(own))
    return found


def _waiting_tied(placement: Placement, stage: int) -> list[WaitingTied]:
    found: list[WaitingTied] = []
    for number, tied in enumerate(placement.graph.tied):
        holders = sorted({placement.position[name] for name in tied.layers})
        for count, at in enumerate(holders[1:], 1):
            variable: Any = placement.program.add_variable(f"again_{number}_{at}_{stage}", 0, 1)
            for other in holders[:count]:
                both = placement.on(at, stage) + placement.on(other, stage)
                placement.program += variable >= both - 1  # (23)
            found.append(WaitingTied(at, tied.grad_bytes, variable))
    return found


def _pending(placement: Placement, stage: int) -> tuple[list[Quantity], list[Quantity]]:
    """For each layer the gradients beside it in a whole backward, and in I."""
    found: list[Quantity] = []
    in_input_grad: list[Quantity] = []
    without_sums = waiting_gradients(placement.graph)
    for at, groups in enumerate(gradients_in_whole_backward(placement.graph)):
        here = placement.on(at, stage)
        own = [
            group.bytes * _waits(placement, stage, at, number, group)
            if group.readers
            else group.bytes * here
            for number, group in enumerate(groups)
        ]
        found.append(sum_of(own))
        # The sums of tied gradients come last.
        in_input_grad.append(sum_of(own[: len(without_sums[at])]))
    return found, in_input_grad


def _waits(placement: Placement, stage: int, at: int, number: int, group: WaitingGradient) -> Any:
    """waits[at, number, stage] for one group."""

    def on(layer: int) -> Quantity:
        return placement.on(layer, stage)

    variable: Any = placement.program.add_variable(f"waits_{at}_{number}_{stage}", 0, 1)
    gone = 0 if group.producer is None else on(group.producer)
    # The layer itself may be one of the others: then that condition always holds.
    free = at in group.others or not group.others
    others: Sequence[Quantity] = [0] if free else [on(other) - 1 for other in group.others]
    for reader in group.readers:
        both = on(at) + on(reader) - 1 - gone
        for other in others:
            placement.program += variable >= both + other  # (24)
    return variable
