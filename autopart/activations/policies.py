"""Activation policies: the four fates of a layer's stash, and the ones that a profile and a user allow.

    keep        the stash stays on the device from forward to backward
    recompute   the stash is freed, and the layer's whole forward runs again in backward
    selective   as recompute, but only the cheap part of the layer runs again; the other stash stays
    offload     the stash waits in host memory, and returns for the backward

Freed stash is back on the device while the layer's own backward runs. The layer's inputs stay in any case. A layer
that runs again also keeps each input that its stage makes and that no backward needs.
"""

from collections.abc import Collection
from typing import Literal, NamedTuple

from autopart.records.layer_graph import Layer, LayerGraph
from autopart.records.layouts import Layout, has_virtual_stages
from autopart.records.problem import (
    BIDIRECTIONAL,
    CLASSIC,
    LENDING,
    PAIRED,
    Demands,
    Problem,
)

PolicyName = Literal["keep", "recompute", "selective", "offload"]
POLICIES: tuple[PolicyName, ...] = ("keep", "recompute", "selective", "offload")


class StagePolicies(NamedTuple):
    """Positions for a stage's layers that do not keep their stash, each in one list."""

    recompute: tuple[int, ...] = ()
    selective: tuple[int, ...] = ()
    offload: tuple[int, ...] = ()
    optimizer_on_host: bool = False
    """Whether the stage's optimizer state lies in host memory."""

    @property
    def keeps_all(self) -> bool:
        """Whether each layer keeps its stash."""
        return not (self.recompute or self.selective or self.offload)


def allowed_policies(layer: Layer, demands: Demands) -> tuple[PolicyName, ...]:
    """The policies that the demands leave a layer, at least one.

    A demand that names the layer wins over a demand for all layers. A layer keeps its stash where the
    demanded policy is impossible.
    """
    able = possible_policies(layer)
    # Step 1: a policy that is demanded for this layer by name.
    named = {
        "keep": demands.keep_layers,
        "recompute": demands.recompute_layers,
        "selective": demands.selective_layers,
        "offload": demands.offload_layers,
    }
    for policy in POLICIES:
        if layer.name in named[policy]:
            return (policy,) if policy in able else ("keep",)
    # Step 2: a policy that is demanded for every layer that can have it.
    must = {
        "recompute": demands.recompute == "always",
        "selective": demands.recompute == "selective",
        "offload": demands.offload == "always",
    }
    for policy in able[1:]:
        if must[policy]:
            return (policy,)
    # Step 3: the policies that are left to the planner.
    may = {
        "keep": True,
        "recompute": demands.recompute == "auto",
        "selective": demands.recompute == "auto",
        "offload": demands.offload == "auto",
    }
    return tuple(policy for policy in able if may[policy])


def possible_policies(layer: Layer) -> tuple[PolicyName, ...]:
    """The policies that the profile gives figures for; "keep" comes first."""
    able = {
        "keep": True,
        "recompute": layer.recompute is not None,
        "selective": layer.selective is not None,
        "offload": layer.stash_bytes > 0,
    }
    return tuple(policy for policy in POLICIES if able[policy])


def leaves_choice(demands: Demands) -> bool:
    """Whether any layer may do otherwise than keep its stash, or optimizer state lie in host memory."""
    named = demands.recompute_layers or demands.selective_layers or demands.offload_layers
    others = demands.recompute != "never" or True in optimizer_places(demands)
    return others or may_offload(demands) or bool(named)


def may_offload(demands: Demands) -> bool:
    """Whether any layer may be offloaded."""
    return demands.offload != "never" or bool(demands.offload_layers)


def optimizer_places(demands: Demands) -> tuple[bool, ...]:
    """Where optimizer state may lie: False for the device, True for the host, or both."""
    return {"never": (False,), "auto": (False, True), "always": (True,)}[demands.offload_optimizer]


def has_policies(schedule: str) -> bool:
    """Whether a schedule, or orders of a plan's own, have policies other than keep, and state in host memory.

    The two ranks of a stage under a bidirectional one keep other microbatches, and a choice for both is not modelled.
    Pair times are for layers that keep their stash.
    Where ranks lend stash, a choice on one rank changes the bytes on another, which is not modelled either.
    """
    return schedule not in (*BIDIRECTIONAL, *PAIRED, *LENDING)


def chooses_by_rank(problem: Problem, layout: Layout) -> bool:
    """Whether the stages of a rank choose their policies together, by the moments of its order.

    Under GPipe and 1F1B each stage chooses alone: a number of microbatches in flight says all.
    """
    able = has_policies(layout.schedule) and layout.schedule not in CLASSIC
    return able and leaves_choice(problem.demands)


def fits_together(problem: Problem, layout: Layout) -> bool:
    """Whether stages that fit alone may still not fit together.

    They share a rank, choose policies together, or lend stash to each other.
    """
    lends = layout.schedule in LENDING
    return lends or has_virtual_stages(layout) or chooses_by_rank(problem, layout)


def must_change(layer: Layer, demands: Demands) -> bool:
    """Whether the demands forbid the layer to keep its stash."""
    return "keep" not in allowed_policies(layer, demands)


def kept_inside(layer: Layer, policy: PolicyName) -> int:
    """Stash bytes inside a layer that stay on the device for each microbatch."""
    if policy == "offload":
        return 0
    again = {"recompute": layer.recompute, "selective": layer.selective}.get(policy)
    return again.stash_bytes if again else layer.stash_bytes


def most_freed(graph: LayerGraph, demands: Demands) -> list[int]:
    """For each layer the most stash bytes that the demands let it free, for one microbatch."""
    return [
        layer.stash_bytes - min(kept_inside(layer, own) for own in allowed_policies(layer, demands))
        for layer in graph.layers
    ]


def policy_of(policies: StagePolicies, at: int) -> PolicyName:
    """The policy for the layer at position `at`."""
    for name in POLICIES[1:]:
        if at in getattr(policies, name):
            return name
    return "keep"


def policies_of_bits(members: Collection[int], chosen: int) -> StagePolicies:
    """The policies for a stage's layers, read from a whole number.

    Bits 2p and 2p + 1 are the p-th layer's policy as a place in `POLICIES`, with p from 0.
    """
    found: dict[str, tuple[int, ...]] = {}
    for place, at in enumerate(sorted(members)):
        policy = POLICIES[chosen >> 2 * place & 3]
        found[policy] = (*found.get(policy, ()), at)
    return StagePolicies(
        found.get("recompute", ()), found.get("selective", ()), found.get("offload", ())
    )
