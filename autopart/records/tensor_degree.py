"""Tensor degrees: the one that a plan has, the ones that a user asks for, and the ones that are searched."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from autopart.errors import AutopartError
from autopart.records.cluster import Cluster
from autopart.records.layer_graph import LayerGraph
from autopart.records.profile import Profile
from autopart.records.tensor_variants import Degree, TensorVariant, degree_name, degrees_listed
from autopart.text import counted
from autopart.units import PositiveCount


class Tensor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a tensor group shares each layer."""

    degree: Degree
    """GPUs that run each layer together. Rank q stands for GPUs q x degree to q x degree + degree - 1."""
    sequence_parallel: bool
    """Whether they also split the sequence where layers need no whole tensors."""


class TensorDemand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tensor degrees to choose from, over the profile's variants."""

    degree: Degree | None = None
    """The tensor degree that the plan must have; null for any, also 1."""
    sequence_parallel: bool | None = None
    """Whether degrees above 1 have sequence parallelism; null for both."""
    per_stage: Literal[True] | msgspec.UnsetType = msgspec.UNSET
    """True where each stage may have a degree of its own; absent where the plan has one degree."""


class StageDegrees(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tensor degrees among which each stage has its own, at least two of them in a plan."""

    degrees: tuple[PositiveCount, ...]
    """The degrees, smallest first."""
    sequence_parallel: bool
    """Whether degrees above 1 have sequence parallelism."""


MaybeTensor = Tensor | msgspec.UnsetType
"""A tensor degree; unset where it is 1."""


def degree_of(tensor: MaybeTensor) -> int:
    """The tensor degree, from 1 on."""
    return tensor.degree if isinstance(tensor, Tensor) else 1


def tensor_name(tensor: MaybeTensor) -> str:
    """A tensor degree in words, such as "tensor degree 4 with sequence parallelism"."""
    split = isinstance(tensor, Tensor) and tensor.sequence_parallel
    return degree_name(degree_of(tensor), sequence_parallel=split)


def variant_of(profile: Profile, tensor: MaybeTensor) -> TensorVariant | None:
    """The profile's variant for a tensor degree above 1; None for 1.

    Raises AutopartError where the profile has no such variant.
    """
    if not isinstance(tensor, Tensor):
        return None
    for variant in profile.variants:
        if tensor_of(variant) == tensor:
            return variant
    split = tensor.sequence_parallel
    raise _missing(profile, tensor_name(tensor), [tensor.degree], split=split)


def graph_of(profile: Profile, tensor: MaybeTensor) -> LayerGraph:
    """The layers as one rank of a tensor group runs them, without collectives."""
    variant = variant_of(profile, tensor)
    return profile.graph if variant is None else variant.graph


def tensor_of(variant: TensorVariant) -> Tensor:
    """A variant's degree, as plans have it."""
    return Tensor(degree=variant.degree, sequence_parallel=variant.sequence_parallel)


def searched_degrees(
    profile: Profile, cluster: Cluster, demand: TensorDemand | msgspec.UnsetType
) -> tuple[MaybeTensor, ...]:
    """The tensor degrees that a demand leaves, smallest first; only 1 where nothing is asked.

    Any degree stands for the profile's degrees that divide a node's GPUs. Raises AutopartError where the profile,
    or a node, does not have the degree that is asked for.
    """
    if not isinstance(demand, TensorDemand):
        return (msgspec.UNSET,)
    if cluster.gpus:
        raise AutopartError(
            "a tensor degree needs equal GPUs, and these are listed, each with its own; leave --tensor out"
        )
    able = [
        tensor_of(variant)
        for variant in profile.variants
        if demand.degree in (None, variant.degree)
        and demand.sequence_parallel in (None, variant.sequence_parallel)
    ]
    if not able:
        split = demand.sequence_parallel is True
        wanted = demand.degree or "above 1"
        said = f"tensor degree {wanted}" + " with sequence parallelism" * split
        raise _missing(profile, said, [demand.degree] if demand.degree else [2, 4, 8], split=split)
    if demand.degree is not None:
        check_fits_node(demand.degree, cluster)
    fitting = [one for one in able if cluster.gpus_per_node % one.degree == 0]
    ordered = sorted(fitting, key=lambda one: (one.degree, one.sequence_parallel))
    return (msgspec.UNSET, *ordered) if demand.degree is None else tuple(ordered)


def check_fits_node(degree: int, cluster: Cluster) -> None:
    """Raise AutopartError unless tensor groups of so many GPUs fill a node."""
    room = cluster.gpus_per_node
    if room % degree:
        able = ", ".join(str(t) for t in range(1, room + 1) if room % t == 0)
        raise AutopartError(
            f"a tensor group of {counted(degree, 'GPU')} does not fill a node of {counted(room, 'GPU')}: the tensor degree "
            f"must divide the GPUs of a node, as {able} do"
        )


def _missing(
    profile: Profile, wanted: str, degrees: Sequence[int], *, split: bool
) -> AutopartError:
    """The error where a profile has no such degree, with the command that adds it."""
    own = degrees_listed(profile.variants)
    asked = ",".join(map(str, degrees))
    return AutopartError(
        f"the profile has no {wanted}, only {own}; profile the model again: autopart profile "
        f"{profile.source.model} --tensor {asked}" + " --sequence-parallel" * split
    )
