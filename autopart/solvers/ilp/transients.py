"""Waiting gradients and workspace on one stage, as constraints in an integer program.

autopart/solvers/ilp/program.py has the symbols, and constraints (7), (23) and (24).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from autopart.cost.transients import (
    WaitingGradient,
    gradients_in_whole_backward,
    own_results,
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
    results: Sequence[Sequence[tuple[int, Quantity]]]
    """For each layer the results that it keeps itself: bytes, and whether the stage sends them on."""


def stage_gradients(placement: Placement, stage: int) -> StageGradients:
    """Add the variables in (23) and (24) for one stage."""
    numbers = {value.name: number for number, value in enumerate(placement.graph.values)}
    tied = _waiting_tied(placement, stage)
    pending = _pending(placement, stage)
    results = [
        [(v.bytes, placement.crosses(numbers[v.name], stage)) for v in own]
        for own in own_results(placement.graph)
    ]
    return StageGradients(tied, pending, results)


def kept_workspace(placement: Placement, stage: int, gradients: StageGradients) -> Quantity:
    """Workspace on a stage whose layers all keep their stash: work[s] in (7)."""
    program, layers = placement.program, whole_transients(placement.graph)
    variable: Any = program.add_variable(f"work_{stage}", 0)
    # The variable counts in units of the largest transient, so that coefficients are near 1.
    scale = max(max(layer.most_bytes, layer.backward_bytes or 0) for layer in layers) or 1
    for at, layer in enumerate(layers):
        behind = sum_of(
            other.less_bytes / scale * placement.on(place, stage)
            for place, other in enumerate(layers)
            if place > at and other.less_bytes
        )
        waits = sum_of(
            own.grad_bytes / scale * own.waits for own in gradients.tied if own.layer > at
        )
        if layer.most_bytes:
            here = layer.most_bytes / scale * placement.on(at, stage)
            program += variable >= here + waits - behind  # (7)
        if layer.backward_bytes is not None:
            own = layer.backward_bytes / scale * placement.on(at, stage)
            here = own + gradients.pending[at] * (1 / scale)
            program += variable >= here + waits - behind  # (7)
    return scale * variable


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


def _pending(placement: Placement, stage: int) -> list[Quantity]:
    found: list[Quantity] = []
    for at, groups in enumerate(gradients_in_whole_backward(placement.graph)):
        here = placement.on(at, stage)
        own = [
            group.bytes * _waits(placement, stage, at, number, group)
            if group.readers
            else group.bytes * here
            for number, group in enumerate(groups)
        ]
        found.append(sum_of(own))
    return found


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
