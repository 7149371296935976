"""The rank groups that are searched, with every kind of sharded state and every shard degree that a demand leaves."""

from collections.abc import Sequence

import msgspec

from autopart.errors import AutopartError
from autopart.records.cluster import Cluster
from autopart.records.group_choice import GroupChoice, GroupDemand, searched_groups
from autopart.records.profile import Profile
from autopart.records.rank_group import (
    Group,
    MaybeGroup,
    Reduce,
    Shard,
    context_degree,
    expert_degree,
    group_size,
    tensor_degree,
)
from autopart.records.training import Training
from autopart.text import counted


def searched_choices(
    profile: Profile,
    cluster: Cluster,
    demand: GroupDemand | msgspec.UnsetType,
    training: Training,
    num_microbatches: int,
) -> tuple[GroupChoice, ...]:
    """The choices for microbatches of the profile's size, of which a step has `num_microbatches`.

    A group with shard degree d runs d such microbatches together. So d divides them, and d times the group without it
    divides a node. An expert degree divides the profile's samples. Empty where the demand leaves no such degrees. Raises AutopartError as `searched_groups` does.
    """
    bases = able_to_share_samples(searched_groups(profile, cluster, demand), profile)
    if not isinstance(demand, GroupDemand) or not isinstance(demand.shard, tuple):
        return tuple(GroupChoice(base) for base in bases)
    found: list[GroupChoice] = []
    for base in bases:
        degrees = [
            d
            for d in _degrees(base, cluster)
            if demand.shard_degree in (msgspec.UNSET, d) and num_microbatches % d == 0
        ]
        for word in demand.shard:
            if word == "none":
                found.append(GroupChoice(base))
            elif word == "zero1":
                found.append(GroupChoice(base, zero1=True))
            else:
                found += [GroupChoice(_sharded(base, word, d, training)) for d in degrees]
    return tuple(found)


def able_to_share_samples(groups: Sequence[MaybeGroup], profile: Profile) -> tuple[MaybeGroup, ...]:
    """The groups whose expert degree divides the profile's samples: a profile may be scaled to fewer."""
    return tuple(one for one in groups if profile.microbatch_size % expert_degree(one) == 0)


def no_expert_degree(groups: Sequence[MaybeGroup], samples: int) -> AutopartError:
    """The error where no expert degree divides the samples of a microbatch."""
    degrees = sorted({expert_degree(one) for one in groups})
    listed = " or ".join(map(str, degrees))
    return AutopartError(
        f"expert degree {listed} does not divide a microbatch of {counted(samples, 'sample')}; take a --microbatch-size "
        f"that is a multiple of {degrees[0]}"
    )


def _sharded(base: MaybeGroup, shard: Shard, degree: int, training: Training) -> Group:
    """The group with sharded state over a shard degree."""
    # FSDP2 under a pipeline sums gradients behind the last backward.
    reduce: Reduce = "step" if training.sync == "fsdp2" else "microbatch"
    return Group(
        tensor=tensor_degree(base),
        sequence_parallel=isinstance(base, Group) and base.sequence_parallel,
        context=context_degree(base),
        expert=expert_degree(base),
        data=degree,
        shard=shard,
        reduce=reduce,
    )


def _degrees(base: MaybeGroup, cluster: Cluster) -> list[int]:
    """The shard degrees with which a group fills a node."""
    most = cluster.gpus_per_node // group_size(base)
    return [d for d in range(2, most + 1) if most % d == 0]


def no_shard_degree(
    bases: Sequence[MaybeGroup], cluster: Cluster, demand: GroupDemand, num_microbatches: int
) -> AutopartError:
    """The error where no shard degree is left, with those that divide a node, or the batches that would do."""
    able = sorted({d for base in bases for d in _degrees(base, cluster)})
    asked, room = demand.shard_degree, counted(cluster.gpus_per_node, "GPU")
    groups = f"groups of {counted(min(map(group_size, bases)), 'GPU')} on nodes of {room}"
    if not able:
        return AutopartError(
            f"sharded state needs at least 2 GPUs of a node that share it; {groups} leave none"
        )
    listed = ", ".join(map(str, able))
    if isinstance(asked, int) and asked not in able:
        size = min(map(group_size, bases))
        held = counted(cluster.gpus_per_node // size, "group")
        of_node = room if size == 1 else f"{held} of {counted(size, 'GPU')}"
        return AutopartError(
            f"shard degree {asked} does not divide the {of_node} of a node; {listed} do"
        )
    wanted = f"shard degree {asked}" if isinstance(asked, int) else f"none of {listed}"
    return AutopartError(
        f"{wanted} does not divide the {counted(num_microbatches, 'microbatch')} of the profile's size in a step; "
        "take another --global-batch or a smaller --microbatch-size"
        if isinstance(asked, int)
        else f"{wanted}, the shard degrees that divide a node, divides the {counted(num_microbatches, 'microbatch')} "
        "of the profile's size in a step; take another --global-batch or a smaller --microbatch-size"
    )
