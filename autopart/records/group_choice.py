"""The rank groups that a user asks for, and those that are searched."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from autopart.errors import AutopartError
from autopart.records.cluster import Cluster
from autopart.records.group_variants import GroupVariant, groups_listed
from autopart.records.layer_graph import LayerGraph
from autopart.records.profile import Profile
from autopart.records.rank_group import (
    Degree,
    Group,
    MaybeGroup,
    check_fits_node,
    group_name,
    group_size,
)


class GroupDemand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rank groups to choose from, over the profile's variants."""

    tensor: Degree | None = None
    """The tensor degree that the plan must have; null for any, also 1."""
    sequence_parallel: bool | None = None
    """Whether tensor degrees above 1 have sequence parallelism; null for both."""
    per_stage: Literal[True] | msgspec.UnsetType = msgspec.UNSET
    """True where each stage may have a tensor degree of its own; absent where the plan has one degree."""


def variant_of(profile: Profile, group: MaybeGroup) -> GroupVariant | None:
    """The profile's variant for a rank group; None where each rank is one GPU.

    Raises AutopartError where the profile has no such variant.
    """
    if not isinstance(group, Group):
        return None
    for variant in profile.variants:
        if variant.group == group:
            return variant
    raise _missing(profile, group_name(group), [group.tensor], split=group.sequence_parallel)


def graph_of(profile: Profile, group: MaybeGroup) -> LayerGraph:
    """The layers as one GPU of a rank group runs them, without collectives."""
    variant = variant_of(profile, group)
    return profile.graph if variant is None else variant.graph


def searched_groups(
    profile: Profile, cluster: Cluster, demand: GroupDemand | msgspec.UnsetType
) -> tuple[MaybeGroup, ...]:
    """The rank groups that a demand leaves, smallest first; only one GPU where nothing is asked.

    Any degree stands for the profile's degrees that divide a node's GPUs. Raises AutopartError where the profile,
    or a node, does not have the degree that is asked for.
    """
    if not isinstance(demand, GroupDemand):
        return (msgspec.UNSET,)
    if cluster.gpus:
        raise AutopartError(
            "a tensor degree needs equal GPUs, and these are listed, each with its own; leave --tensor out"
        )
    able = [
        variant.group
        for variant in profile.variants
        if variant.group.context == 1
        and demand.tensor in (None, variant.group.tensor)
        and demand.sequence_parallel in (None, variant.group.sequence_parallel)
    ]
    if not able:
        split = demand.sequence_parallel is True
        wanted = demand.tensor or "above 1"
        said = f"tensor degree {wanted}" + " with sequence parallelism" * split
        raise _missing(profile, said, [demand.tensor] if demand.tensor else [2, 4, 8], split=split)
    if demand.tensor is not None:
        check_fits_node(demand.tensor, cluster)
    fitting = [one for one in able if cluster.gpus_per_node % group_size(one) == 0]
    ordered = sorted(fitting, key=lambda one: (one.tensor, one.sequence_parallel))
    return (msgspec.UNSET, *ordered) if demand.tensor is None else tuple(ordered)


def _missing(
    profile: Profile, wanted: str, degrees: Sequence[int], *, split: bool
) -> AutopartError:
    """The error where a profile has no such degree, with the command that adds it."""
    own = groups_listed(profile.variants)
    asked = ",".join(map(str, degrees))
    return AutopartError(
        f"the profile has no {wanted}, only {own}; profile the model again: autopart profile "
        f"{profile.source.model} --tensor {asked}" + " --sequence-parallel" * split
    )
