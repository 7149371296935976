"""The rank groups that a user asks for, and those that are searched."""

from typing import Literal, NamedTuple

import msgspec

from autopart.errors import AutopartError
from autopart.records.cluster import Cluster
from autopart.records.expert_load import AssumedLoad
from autopart.records.group_variants import GroupVariant, groups_listed
from autopart.records.groups_on_nodes import check_fits_nodes, fits_nodes
from autopart.records.layer_graph import LayerGraph
from autopart.records.profile import Profile
from autopart.records.rank_group import (
    Degree,
    Group,
    MaybeGroup,
    context_degree,
    expert_degree,
    group_name,
    has_ring,
    tensor_degree,
    without_shard,
)

Sharding = Literal["none", "zero1", "zero2", "zero3"]
"""Which state GPUs share: none, or ZeRO's stage. ZeRO-1 is shared by replicas, the others inside a group."""
SHARDINGS: tuple[Sharding, ...] = ("none", "zero1", "zero2", "zero3")


Exchange = Literal["ring", "gather"]
"""How context ranks exchange keys and values: block by block around a ring, or in one all-gather."""


class GroupDemand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rank groups to choose from, over the profile's variants."""

    tensor: Degree | None = None
    """The tensor degree that the plan must have; null for any, also 1."""
    sequence_parallel: bool | None = None
    """Whether tensor degrees above 1 have sequence parallelism; null for both."""
    per_stage: Literal[True] | msgspec.UnsetType = msgspec.UNSET
    """True where each stage may have a tensor degree of its own; absent where the plan has one degree."""
    context: tuple[Degree, ...] | msgspec.UnsetType | None = msgspec.UNSET
    """The context degrees to choose from; null for any, also 1; absent for 1."""
    exchange: Exchange | msgspec.UnsetType = msgspec.UNSET
    """How context ranks exchange keys and values; absent for either."""
    expert: tuple[Degree, ...] | msgspec.UnsetType | None = msgspec.UNSET
    """The expert degrees to choose from; null for any, also 1; absent for 1."""
    imbalance: AssumedLoad | msgspec.UnsetType = msgspec.UNSET
    """How uneven the loads of expert ranks are assumed to be: one imbalance for all layers, "measured" for the profile's own, or
    those of each layer in a run; absent for balanced load."""
    shard: tuple[Sharding, ...] | msgspec.UnsetType = msgspec.UNSET
    """The kinds of sharded state to choose from; absent where the training alone says it."""
    shard_degree: Degree | msgspec.UnsetType = msgspec.UNSET
    """The shard degree that zero2 and zero3 must have; absent for any that fits."""


def has_sharding_choice(demand: GroupDemand | msgspec.UnsetType) -> bool:
    """Whether a demand says which state may be shared; else the training alone says it."""
    return isinstance(demand, GroupDemand) and demand.shard is not msgspec.UNSET


def load_of(
    demand: GroupDemand | msgspec.UnsetType, group: MaybeGroup
) -> AssumedLoad | msgspec.UnsetType:
    """The load that a demand assumes for a group's expert ranks; unset for balanced load, and without such ranks."""
    if not isinstance(demand, GroupDemand) or expert_degree(group) == 1:
        return msgspec.UNSET
    return demand.imbalance


class GroupChoice(NamedTuple):
    """A rank group, and whether replicas share optimizer state."""

    group: MaybeGroup
    zero1: Literal[True] | msgspec.UnsetType = msgspec.UNSET
    """True where they do, and other choices do not."""


def choice_name(choice: GroupChoice) -> str:
    """A choice in words, such as "tensor degree 2, zero3 over 4 GPUs"."""
    return group_name(choice.group) + ", ZeRO-1" * (choice.zero1 is True)


def variant_of(profile: Profile, group: MaybeGroup) -> GroupVariant | None:
    """The profile's variant for a rank group; None where each rank is one GPU.

    Raises AutopartError where the profile has no such variant.
    """
    if not isinstance(group, Group):
        return None
    for variant in profile.variants:
        if variant.group == group:
            return variant
    asked = f" --tensor {group.tensor}" * (group.tensor > 1)
    asked += " --sequence-parallel" * group.sequence_parallel
    asked += f" --context {group.context}" * (group.context > 1)
    asked += f" --expert {group.expert}" * (group.expert > 1)
    raise _not_profiled(profile, group_name(group), asked)


def graph_of(profile: Profile, group: MaybeGroup) -> LayerGraph:
    """The layers as one GPU of a rank group runs them, without collectives and without sharded state."""
    variant = variant_of(profile, without_shard(group))
    return profile.graph if variant is None else variant.graph


def searched_groups(
    profile: Profile, cluster: Cluster, demand: GroupDemand | msgspec.UnsetType
) -> tuple[MaybeGroup, ...]:
    """The groups without sharded state that a demand leaves, smallest first; only one GPU where nothing is asked.

    Any degree stands for the profile's degrees that fill nodes. Raises AutopartError where the profile,
    or the cluster, does not have the degrees that are asked for.
    """
    if not isinstance(demand, GroupDemand):
        return (msgspec.UNSET,)
    if cluster.gpus:
        raise AutopartError(_UNEQUAL[is_tensor_demand(demand)])
    contexts, experts = _wanted(demand.context), _wanted(demand.expert)
    groups = [msgspec.UNSET, *(variant.group for variant in profile.variants)]
    able = [
        group
        for group in groups
        if demand.tensor in (None, tensor_degree(group))
        and (contexts is None or context_degree(group) in contexts)
        and (context_degree(group) == 1 or demand.exchange in (msgspec.UNSET, _exchange(group)))
        and (experts is None or expert_degree(group) in experts)
        and (tensor_degree(group) == 1 or demand.sequence_parallel in (None, _splits(group)))
    ]
    if not [group for group in able if isinstance(group, Group)] and _asks_above_1(demand):
        raise _missing(profile, demand)
    fitting = [one for one in able if fits_nodes(one, cluster)]
    are_fixed = all(degrees is not None and len(degrees) == 1 for degrees in (contexts, experts))
    if not fitting or (demand.tensor is not None and are_fixed):
        check_fits_nodes(able[0], cluster)
    return tuple(
        sorted(
            fitting,
            key=lambda one: (
                tensor_degree(one),
                _splits(one),
                context_degree(one),
                has_ring(one),
                expert_degree(one),
            ),
        )
    )


_UNEQUAL = {
    True: "a tensor degree needs equal GPUs, and these are listed, each with its own; leave --tensor out",
    False: "a rank group needs equal GPUs, and these are listed, each with its own; leave --context, --expert and --shard out",
}


def is_tensor_demand(demand: GroupDemand) -> bool:
    """Whether a demand is on tensor degrees alone."""
    return demand.context is demand.expert is demand.shard is msgspec.UNSET


def _asks_above_1(demand: GroupDemand) -> bool:
    """Whether a demand asks for a variant, though degree 1 may do too."""
    return demand.tensor != 1 or any(
        degrees not in (msgspec.UNSET, (1,)) for degrees in (demand.context, demand.expert)
    )


def _wanted(
    degrees: tuple[int, ...] | msgspec.UnsetType | None,
) -> tuple[int, ...] | None:
    """The degrees to choose from; None for any."""
    return (1,) if degrees is msgspec.UNSET else degrees


def _exchange(group: MaybeGroup) -> Exchange:
    return "ring" if has_ring(group) else "gather"


def _splits(group: MaybeGroup) -> bool:
    return isinstance(group, Group) and group.sequence_parallel


def _missing(profile: Profile, demand: GroupDemand) -> AutopartError:
    """The error where a profile has no such degrees, with the command that adds them."""
    split, degree = demand.sequence_parallel is True, demand.tensor
    said: list[str] = []
    asked = ""
    if degree != 1:
        said.append(f"tensor degree {degree or 'above 1'}" + " with sequence parallelism" * split)
        asked = f" --tensor {degree or '2,4,8'}" + " --sequence-parallel" * split
    for kind, given in (("context", demand.context), ("expert", demand.expert)):
        degrees = _wanted(given)
        if degrees is None or max(degrees) > 1:
            listed = "above 1" if degrees is None else " or ".join(map(str, degrees))
            ring = " with ring exchange" * (kind == "context" and demand.exchange == "ring")
            said.append(f"{kind} degree {listed}{ring}")
            asked += f" --{kind} {','.join(map(str, degrees or (2, 4, 8)))}"
    return _not_profiled(profile, " and ".join(said), asked)


def _not_profiled(profile: Profile, wanted: str, asked: str) -> AutopartError:
    own = groups_listed(profile.variants)
    if not wanted.startswith("tensor"):
        own = f"tensor degree{'s' * (own != '1')} {own}"
    return AutopartError(
        f"the profile has no {wanted}, only {own}; profile the model again: autopart profile "
        f"{profile.source.model}{asked}"
    )
