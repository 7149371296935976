"""Activation policies on one stage: each combination tried, copies to the host run one by one."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from autopart.records.cluster import HostLink
from autopart.records.layer_graph import Layer
from autopart.records.problem import Demands
from tests.support.witness.graphs import Facts
from tests.support.witness.stages import (
    StageFigures,
    first_backward,
    gradients_beside,
    input_grad_transient,
    layer_workspace,
    tied_gradients_beside,
    tied_sum,
)


class PolicyFigures(NamedTuple):
    """A stage's seconds and bytes under one combination of policies."""

    policies: tuple[str, ...]
    """One per layer, in the order of execution."""
    forward: float
    """Seconds on the stage's ranks, waits for copies included."""
    backward: float
    stash: int
    workspace: int
    input_grad_workspace: int
    """Transient bytes in I."""
    first_backward: int
    """Transient bytes in the first backward, with the gradients that it has made."""
    host: int
    """Stash in host memory for one microbatch."""

    @property
    def changed(self) -> int:
        """Layers that do not keep their stash."""
        return sum(policy != "keep" for policy in self.policies)


def open_policies(layer: Layer, demands: Demands) -> tuple[str, ...]:
    """The policies that the demands leave a layer."""
    able = {
        "keep": True,
        "recompute": layer.recompute is not None,
        "selective": layer.selective is not None,
        "offload": layer.stash_bytes > 0,
    }
    named = {
        "keep": demands.keep_layers,
        "recompute": demands.recompute_layers,
        "selective": demands.selective_layers,
        "offload": demands.offload_layers,
    }
    for policy, names in named.items():
        if layer.name in names:
            return (policy if able[policy] else "keep",)
    for policy, whole in (
        ("recompute", demands.recompute == "always"),
        ("selective", demands.recompute == "selective"),
        ("offload", demands.offload == "always"),
    ):
        if whole and able[policy]:
            return (policy,)
    chosen = {
        "keep": True,
        "recompute": demands.recompute == "auto",
        "selective": demands.recompute == "auto",
        "offload": demands.offload == "auto",
    }
    return tuple(policy for policy in able if able[policy] and chosen[policy])


class Where(NamedTuple):
    """Where and how a stage runs."""

    host: HostLink | None
    speed: float
    split: bool = False
    """Whether its backward is split into I and W. Stash returns within I then."""


def all_policies(
    facts: Facts, figures: StageFigures, demands: Demands, where: Where
) -> Iterator[PolicyFigures]:
    """The stage under every combination of policies that the demands leave its layers."""
    choices = [
        [
            policy
            for policy in open_policies(facts.layers[at], demands)
            if where.host is not None or policy != "offload"
        ]
        for at in figures.members
    ]
    for policies in itertools.product(*choices):
        yield with_policies(facts, figures, policies, where)


def with_policies(
    facts: Facts,
    figures: StageFigures,
    policies: Sequence[str],
    where: Where,
) -> PolicyFigures:
    """The stage under one combination of policies."""
    members = figures.members
    stays = [_stays(facts, members, at, own) for at, own in zip(members, policies, strict=True)]
    freed = sum(facts.layers[at].stash_bytes - own for at, own in zip(members, stays, strict=True))
    forward, backward = _seconds(facts, members, policies, where)
    needs = _needs(facts, members, policies)
    return PolicyFigures(
        policies=tuple(policies),
        forward=forward,
        backward=backward,
        stash=figures.stash - freed,
        workspace=_workspace(facts, members, needs, stays),
        first_backward=first_backward(facts, members, needs, stays),
        input_grad_workspace=_input_grad_workspace(facts, members, policies, stays),
        host=sum(
            facts.layers[at].stash_bytes
            for at, own in zip(members, policies, strict=True)
            if own == "offload"
        ),
    )


def _again(layer: Layer, policy: str) -> tuple[float, int]:
    """Seconds that a policy adds to a layer's backward, and stash bytes that stay inside the layer."""
    if policy == "offload":
        return 0.0, 0
    again = {"recompute": layer.recompute, "selective": layer.selective}.get(policy)
    return (again.extra_time, again.stash_bytes) if again else (0.0, layer.stash_bytes)


def _stays(facts: Facts, members: Sequence[int], at: int, policy: str) -> int:
    """Bytes that stay per microbatch: inside the layer, and inputs that it alone keeps."""
    inside = _again(facts.layers[at], policy)[1]
    if policy not in ("recompute", "selective"):
        return inside
    return inside + sum(
        value.size
        for value in facts.values
        if at in value.readers and value.maker in members and value.kept_by.isdisjoint(members)
    )


def _workspace(
    facts: Facts, members: Sequence[int], needs: Sequence[int], stays: Sequence[int]
) -> int:
    """The largest transient above the whole stash."""
    peaks = [tied_gradients_beside(facts, members, members[0] - 1) - sum(stays)]
    for place, (at, need) in enumerate(zip(members, needs, strict=True)):
        peaks.append(need - sum(stays[place + 1 :]) + tied_gradients_beside(facts, members, at))
    return max(peaks)


def _needs(facts: Facts, members: Sequence[int], policies: Sequence[str]) -> list[int]:
    """Each layer's transient, with stash that returns and stash in transit."""
    found: list[int] = []
    transit = 0
    for at, policy in zip(members, policies, strict=True):
        layer = facts.layers[at]
        own = layer_workspace(facts, members, at, sums_tied=True)
        returned = layer.stash_bytes - _again(layer, policy)[1]
        if policy in ("recompute", "selective") and layer.backward_workspace_bytes is not None:
            # The second forward has the gradients beside it, and results that were sent exist twice.
            own = max(layer.workspace_bytes, layer.backward_workspace_bytes)
            own += gradients_beside(facts, members, at) + _sent_results(facts, members, at)
            own += tied_sum(facts, members, at)
        found.append(own + returned + transit)
        if policy == "offload":
            transit = layer.stash_bytes
    return found


def _input_grad_workspace(
    facts: Facts, members: Sequence[int], policies: Sequence[str], stays: Sequence[int]
) -> int:
    """The largest transient in I. A layer that ran it has left its bytes for W, whatever its policy is."""
    left: list[int] = []
    needs: list[int] = []
    transit = 0
    for at, policy in zip(members, policies, strict=True):
        layer = facts.layers[at]
        split = layer.split_backward
        left.append(split.waiting_bytes if split else layer.stash_bytes)
        own = input_grad_transient(facts, members, at)
        if policy in ("recompute", "selective"):
            # The forward runs again within I. Where gradients are counted apart, they lie beside it.
            alone = split.input_grad_workspace_bytes if split else layer.workspace_bytes
            if split is None and layer.backward_workspace_bytes is not None:
                alone = max(alone, layer.backward_workspace_bytes)
            own = max(alone, layer.workspace_bytes)
            if layer.backward_workspace_bytes is not None:
                own += gradients_beside(facts, members, at) + _sent_results(facts, members, at)
        needs.append(own + layer.stash_bytes - _again(layer, policy)[1] + transit)
        transit = layer.stash_bytes if policy == "offload" else transit
    grown = [own - less for own, less in zip(left, stays, strict=True)]
    return max(sum(grown), *(need + sum(grown[p + 1 :]) for p, need in enumerate(needs)))


def _sent_results(facts: Facts, members: Sequence[int], at: int) -> int:
    return sum(
        value.size
        for value in facts.values
        if value.own_result and value.maker == at and not set(value.readers) <= set(members)
    )


def _seconds(
    facts: Facts,
    members: Sequence[int],
    policies: Sequence[str],
    where: Where,
) -> tuple[float, float]:
    """Forward and backward seconds, with each copy's start and end written down."""
    host, speed, split = where
    layers = [facts.layers[at] for at in members]
    away = [place for place, policy in enumerate(policies) if policy == "offload"]
    copy = {
        place: host.latency + layers[place].stash_bytes / host.bandwidth
        for place in away
        if host is not None
    }
    beneath = host is not None and host.overlaps
    now = copied = 0.0
    for place, layer in enumerate(layers):
        now += layer.forward_time / speed
        if place in copy:
            # The layer before must have left; then this one's copy starts.
            now = max(now, copied) + (0.0 if beneath else copy[place])
            copied = now + (copy[place] if beneath else 0.0)
    forward = max(now, copied)
    now = 0.0
    there = {place: copy[place] for place in away[-1:] if beneath}
    for place in reversed(range(len(layers))):
        layer = layers[place]
        if place in copy:
            now = max(now, there[place]) if beneath else now + copy[place]
            earlier = [other for other in away if other < place][-1:]
            there.update({other: now + copy[other] for other in earlier})
        extra = _again(layer, policies[place])[0]
        weights = 0.0 if split else layer.weight_grad_time
        now += (layer.input_grad_time + weights + extra) / speed
    # W runs on its own, when all stash is back.
    return forward, now + split * sum(layer.weight_grad_time for layer in layers) / speed
