"""The seconds and bytes of one stage, summed up layer by layer as docs/cost-model.md says."""

from collections.abc import Sequence
from typing import NamedTuple

from autopart.records.layer_graph import Layer, TiedParameter
from tests.support.witness.graphs import Crossing, Facts, members_of


class StageFigures(NamedTuple):
    """One stage's seconds on the profile's device, and its bytes, where layers keep their stash."""

    members: tuple[int, ...]
    forward: float
    backward: float
    weight_grad: float
    split: float
    update: float
    unshared: float
    weights: int
    gradients: int
    unscattered: int
    """Gradient bytes beyond shards, kept until a sum once per step."""
    trained: int
    widest: int
    inputs: int
    stash: int
    waiting: int
    workspace: int
    input_grad_workspace: int
    weight_grad_workspace: int
    first_backward: int
    """Transient bytes in the first backward, with the gradients that it has made."""
    received: Crossing
    sent: Crossing
    relayed: int
    outputs: int
    """Results that the stage sends on and no backward on it needs."""


def stage_figures(facts: Facts, before: int, after: int) -> StageFigures:
    """The figures for the layers between two cuts."""
    members = members_of(before, after)
    layers = [facts.layers[at] for at in members]
    tied = [
        one
        for one, holders in zip(facts.graph.tied, facts.tied, strict=True)
        for _ in [at for at in holders if at in members][1:]
    ]
    stash = _stash(facts, members, before, after)
    inner = sum(la.stash_bytes for la in layers)
    return StageFigures(
        members=tuple(members),
        forward=sum(la.forward_time for la in layers),
        backward=sum(la.input_grad_time + la.weight_grad_time for la in layers),
        weight_grad=sum(la.weight_grad_time for la in layers),
        split=sum(la.split_time for la in layers),
        update=sum(la.update_time for la in layers),
        unshared=sum(la.unshared_update_time or 0.0 for la in layers),
        # Each further copy of a tied parameter on the stage is taken off.
        weights=sum(la.param_bytes + la.buffer_bytes for la in layers)
        - sum(one.param_bytes for one in tied),
        gradients=sum(la.grad_bytes for la in layers) - sum(one.grad_bytes for one in tied),
        unscattered=sum(la.unscattered_grad_bytes or 0 for la in layers)
        - sum(one.unscattered_grad_bytes or 0 for one in tied),
        trained=sum(la.num_trainable for la in layers) - sum(one.num_trainable for one in tied),
        widest=max(la.num_trainable for la in layers),
        inputs=sum(size for readers, size in facts.inputs if readers.intersection(members)),
        stash=stash,
        waiting=_waiting(facts, layers, stash - inner) if facts.splits_profiled else stash,
        workspace=workspace(facts, members),
        input_grad_workspace=_input_grad_workspace(facts, members),
        weight_grad_workspace=_weight_grad_workspace(facts, members),
        first_backward=first_backward(
            facts,
            members,
            own=[layer_workspace(facts, members, at, sums_tied=True) for at in members],
            stays=[facts.layers[at].stash_bytes for at in members],
        ),
        received=facts.crossing(before),
        sent=facts.crossing(after),
        relayed=_relayed(facts, members, before, after),
        outputs=sum(
            value.size
            for value in facts.values
            if value.maker in members
            and facts.crosses(value, after)
            and value.needed_by.isdisjoint(members)
        ),
    )


def _stash(facts: Facts, members: Sequence[int], before: int, after: int) -> int:
    """Stash for one microbatch: inside layers, received values, and values made here that stay."""
    found = sum(facts.layers[at].stash_bytes for at in members)
    for value in facts.values:
        here = value.maker in members
        needed = value.readers and not value.needed_by.isdisjoint(members)
        if facts.crosses(value, before) or (here and needed):
            found += value.size
    return found


def _waiting(facts: Facts, layers: Sequence[Layer], values_in_stash: int) -> int:
    """Bytes from I to W: each layer's own, and the values that W needs, at most all in the stash."""
    splits = [la.split_backward for la in layers if la.split_backward is not None]
    values = sum(split.waiting_value_bytes for split in splits)
    return sum(split.waiting_bytes for split in splits) + min(values, values_in_stash)


def _relayed(facts: Facts, members: Sequence[int], before: int, after: int) -> int:
    """Gradients that only pass through, where the profile counts gradients apart."""
    if not facts.gradients_counted:
        return 0
    return sum(
        value.size
        for value in facts.values
        if value.has_gradient
        and facts.crosses(value, before)
        and facts.crosses(value, after)
        and not set(members).intersection(value.readers)
    )


def gradients_beside(facts: Facts, members: Sequence[int], at: int) -> int:
    """Value gradients that lie in the stage when one layer's backward starts.

    Gradients from the next stage are not among them.
    """
    found = 0
    for value in facts.values:
        holders = [one for one in (value.maker, *value.readers) if one in members]
        if value.own_result and value.maker == at:
            # The result itself, or the gradient in its place.
            found += value.size
        elif value.has_gradient and any(one in members and one > at for one in value.readers):
            # A reader has made it. It goes with its maker's backward.
            found += 0 if value.maker in members and value.maker > at else value.size
        if (
            value.has_gradient
            and any(one in members and one > at for one in value.extra_by)
            and any(one <= at for one in holders)
        ):
            found += value.extra
    return found


def tied_gradients_beside(facts: Facts, members: Sequence[int], at: int) -> int:
    """Gradients for tied parameters that later layers have left for the first one, while a layer runs.

    A place ahead of all layers stands for the time behind the last one.
    """
    found = 0
    for one, holders in zip(facts.graph.tied, facts.tied, strict=True):
        own = [holder for holder in holders if holder in members]
        found += one.grad_bytes * sum(1 for holder in own[1:] if holder > at)
    return found


def tied_sum(facts: Facts, members: Sequence[int], at: int) -> int:
    """Bytes of the sums that a layer's whole backward makes of gradients for tied parameters."""
    return sum(
        one.grad_bytes
        for one, holders in zip(facts.graph.tied, facts.tied, strict=True)
        if at in holders and any(other > at for other in holders if other in members)
    )


def layer_workspace(
    facts: Facts, members: Sequence[int], at: int, *, sums_tied: bool = False
) -> int:
    """A layer's transient bytes in F or B, with the gradients beside it."""
    layer = facts.layers[at]
    if layer.backward_workspace_bytes is None:
        return layer.workspace_bytes
    beside = gradients_beside(facts, members, at)
    beside += tied_sum(facts, members, at) if sums_tied else 0
    return max(layer.workspace_bytes, layer.backward_workspace_bytes + beside)


def workspace(facts: Facts, members: Sequence[int]) -> int:
    """The largest transient in F and B, above the whole stash."""
    least = min(members) - 1
    peaks = [
        (0 if at == least else layer_workspace(facts, members, at, sums_tied=True))
        - sum(facts.layers[other].stash_bytes for other in members if other > at)
        + tied_gradients_beside(facts, members, at)
        for at in (least, *members)
    ]
    return max(peaks)


def first_backward(
    facts: Facts, members: Sequence[int], own: Sequence[int], stays: Sequence[int]
) -> int:
    """The most above the whole stash while the first backward runs, last layer first, and once it has ended.

    `own` has each layer's transient, and `stays` the stash that it frees. The gradients that are made stay: those of
    layers that have run or run now, and those of tied parameters with no layer left on the stage.
    """
    peaks: list[int] = []
    for place in range(-1, len(members)):
        at = members[place] if place >= 0 else members[0] - 1
        made = 0
        for other in members:
            layer = facts.layers[other]
            alone = layer.grad_bytes + (layer.unscattered_grad_bytes or 0)
            for one, holders in zip(facts.graph.tied, facts.tied, strict=True):
                alone -= _whole_gradient(one) * (other in holders)
            made += alone * (other >= at)
        for one, holders in zip(facts.graph.tied, facts.tied, strict=True):
            here = [holder for holder in holders if holder in members]
            made += _whole_gradient(one) * (bool(here) and all(holder >= at for holder in here))
        running = own[place] if place >= 0 else 0
        gone = sum(stays[place + 1 :])
        peaks.append(running + made + tied_gradients_beside(facts, members, at) - gone)
    return max(peaks)


def _whole_gradient(tied: TiedParameter) -> int:
    return tied.grad_bytes + (tied.unscattered_grad_bytes or 0)


def _input_grad_workspace(facts: Facts, members: Sequence[int]) -> int:
    """The largest transient in I: later layers have left their bytes for W in place of their stash."""
    return _split_workspace(
        facts,
        members,
        own=[input_grad_transient(facts, members, at) for at in members],
        gone=[
            la.stash_bytes - la.split_backward.waiting_bytes if la.split_backward else 0
            for la in (facts.layers[at] for at in members)
        ],
    )


def input_grad_transient(facts: Facts, members: Sequence[int], at: int) -> int:
    """A layer's transient bytes in I, with the gradients beside it."""
    layer = facts.layers[at]
    if layer.split_backward is None:
        return layer_workspace(facts, members, at)
    own = layer.split_backward.input_grad_workspace_bytes
    if layer.backward_workspace_bytes is None:
        return own
    return own + gradients_beside(facts, members, at)


def _weight_grad_workspace(facts: Facts, members: Sequence[int]) -> int:
    """The largest transient in W: later layers have freed their bytes for W."""
    layers = [facts.layers[at] for at in members]
    return _split_workspace(
        facts,
        members,
        own=[
            la.split_backward.weight_grad_workspace_bytes
            if la.split_backward
            else layer_workspace(facts, members, at)
            for at, la in zip(members, layers, strict=True)
        ],
        gone=[la.split_backward.waiting_bytes if la.split_backward else 0 for la in layers],
    )


def _split_workspace(
    facts: Facts, members: Sequence[int], own: Sequence[int], gone: Sequence[int]
) -> int:
    behind = [sum(gone[place + 1 :]) for place in range(len(members))]
    while_running = [most - less for most, less in zip(own, behind, strict=True)]
    return max(*while_running, -sum(gone))
