"""One model's profiles at several microbatch sizes, measured or scaled.

A size that was not measured is scaled from the measured size with the nearest ratio. Two assumptions
are made then. Forward and backward times, stash, workspace, values and inputs are proportional to the
samples. Parameters, gradients, buffers and the optimizer's step do not change. On a GPU small
microbatches are slower than that: a size scaled down looks too fast, a size scaled up too slow.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from autopart.errors import AutopartError, ProfileError
from autopart.records.graph_check import check_graph
from autopart.records.group_variants import (
    Collective,
    GroupVariant,
    LayerCollectives,
    check_variants,
    groups_listed,
)
from autopart.records.layer_graph import Layer, LayerGraph, Recompute, SplitBackward
from autopart.records.profile import Profile, profile_hash
from autopart.text import counted

MOST_SAMPLES = 2**31
"""The most samples per microbatch."""
MICROBATCHES_PER_GPU = 4
"""The default: enough for a pipeline over all GPUs to idle less than a quarter of its time."""

ASSUMPTION = (
    "times, stash, workspace, values and inputs proportional to samples; "
    "parameters and the optimizer's step unchanged"
)


class Sized(NamedTuple):
    """A model at one microbatch size."""

    profile: Profile
    """The profile at this size, measured or scaled."""
    profile_hash: str
    """Hash by which plans name the measured profile."""
    profiled_size: int
    """Samples per microbatch in the measured profile."""


def at_sizes(profiles: Sequence[Profile], sizes: Sequence[int] = ()) -> tuple[Sized, ...]:
    """The model at each size, smallest first; without `sizes`, at the profiles' own sizes.

    Raises ProfileError unless the profiles have the same model, device and dtype, and AutopartError
    where a size is below 1 or given twice.
    """
    check_same_model(profiles)
    measured = {profile.microbatch_size: profile for profile in profiles}
    for size in sizes:
        if size > MOST_SAMPLES:
            raise AutopartError(f"microbatch size {size} is too large; at most {MOST_SAMPLES}")
        if size < 1 or sizes.count(size) > 1:
            wrong = "is given twice" if size > 0 else "is below 1"
            raise AutopartError(f"microbatch size {size} {wrong}; give each size once, from 1 on")
    return tuple(
        at_size(measured[nearest_size(list(measured), size)], size)
        for size in sorted(sizes or measured)
    )


def at_size(profile: Profile, microbatch_size: int) -> Sized:
    """The model at one size, scaled where the profile has another size."""
    return Sized(
        scale_profile(profile, microbatch_size), profile_hash(profile), profile.microbatch_size
    )


def samples(
    sizes: Sequence[int],
    num_gpus: int,
    num_microbatches: int | None,
    global_batch: int | None,
) -> int:
    """Samples per step, from `num_microbatches` or from `global_batch`; at most one is given.

    Without either, each GPU gets some microbatches at every size. Raises AutopartError where
    the batch is no multiple of some size, or where `num_microbatches` is given for several sizes.
    """
    if num_microbatches is not None:
        if len(sizes) > 1:
            raise AutopartError(
                f"{counted(num_microbatches, 'microbatch')} of which size? {_listed(sizes)} are searched; "
                "give the batch in samples (--global-batch)"
            )
        if num_microbatches < 1:
            raise AutopartError(
                f"{counted(num_microbatches, 'microbatch')}: there must be at least 1"
            )
        return num_microbatches * sizes[0]
    if global_batch is None:
        return MICROBATCHES_PER_GPU * num_gpus * math.lcm(*sizes)
    # The batch is given: name the sizes that do not divide it, and batches that all sizes divide.
    wrong = [size for size in sizes if global_batch < size or global_batch % size]
    if not wrong:
        return global_batch
    step = math.lcm(*sizes)
    below = max(step, global_batch - global_batch % step)
    right = [size for size in sizes if size not in wrong]
    which = f"microbatches of {_listed(wrong)}" + (
        f" ({_listed(right)} do divide it)" * bool(right)
    )
    if len(sizes) == 1:
        which = f"the profile's microbatch of {sizes[0]}"
    raise AutopartError(
        f"a global batch of {global_batch} is no multiple of {which}; "
        f"try {below} or {below + step}, or other sizes with --microbatch-size"
    )


def _listed(sizes: Sequence[int]) -> str:
    """The sizes with commas between them."""
    return ", ".join(map(str, sizes))


def nearest_size(measured: Sequence[int], size: int) -> int:
    """The measured size with the nearest ratio to `size`; the smaller one on a tie."""
    return min(measured, key=lambda own: (abs(math.log(own / size)), own))


def check_same_model(profiles: Sequence[Profile]) -> None:
    """Raise ProfileError unless the profiles have one model, device and dtype, and different sizes.

    The graph hash cannot be compared: it covers shapes, and so the microbatch size.
    """
    if not profiles:
        raise ProfileError("no profile is given; give at least one")
    first = profiles[0]
    for one, other in itertools.combinations(profiles, 2):
        if one.microbatch_size == other.microbatch_size:
            raise ProfileError(
                f"two profiles have microbatches of {one.microbatch_size}; give one for each size"
            )
    for other in profiles[1:]:
        difference = _difference(first, other)
        if difference:
            raise ProfileError(
                f"the profiles with microbatches of {first.microbatch_size} and "
                f"{other.microbatch_size} do not belong together: {difference}; "
                "profile one model in one dtype on one device"
            )


def _difference(one: Profile, other: Profile) -> str | None:
    """The first difference that means another model, device or dtype; None where there is none."""
    named = [
        ("model", one.source.model, other.source.model),
        ("device", one.device.name, other.device.name),
        ("threads of the device", one.device.threads, other.device.threads),
        ("dtype", one.dtype, other.dtype),
        ("choice of dtypes", _choice_of_dtypes(one), _choice_of_dtypes(other)),
        ("method", one.method, other.method),
        ("number of parameters", one.source.num_params, other.source.num_params),
        ("number of layers", len(one.graph.layers), len(other.graph.layers)),
        ("list of tensor degrees", groups_listed(one.variants), groups_listed(other.variants)),
    ]
    for subject, mine, theirs in named:
        if mine != theirs:
            return f"the {subject} is {mine} and {theirs}"
    for mine, theirs in zip(one.graph.layers, other.graph.layers, strict=True):
        if _unsized(mine) != _unsized(theirs):
            return f"layer '{mine.name}' ({mine.kind}) and '{theirs.name}' ({theirs.kind}) differ"
    if _flow(one.graph) != _flow(other.graph):
        return "values, inputs or tied parameters lie between different layers"
    return None


def _choice_of_dtypes(profile: Profile) -> str:
    return "one for all" if profile.own_dtypes is msgspec.UNSET else "each tensor's own"


def _unsized(layer: Layer) -> tuple[object, ...]:
    """The layer's fields that do not depend on the microbatch size."""
    return (
        layer.name,
        layer.kind,
        layer.param_bytes,
        layer.grad_bytes,
        layer.num_trainable,
        layer.buffer_bytes,
    )


def _flow(graph: LayerGraph) -> object:
    """The graph's values, inputs and tied parameters without their sizes."""
    values = {(v.producer, v.consumers, v.has_gradient) for v in graph.values}
    return values, {i.consumers for i in graph.inputs}, set(graph.tied)


def scale_profile(profile: Profile, microbatch_size: int) -> Profile:
    """The profile scaled to another microbatch size; bytes are rounded up.

    A profile that has this size already comes back unchanged. See the assumptions above. Raises
    ProfileError where the bytes become absurd.
    """
    if microbatch_size == profile.microbatch_size:
        return profile
    share = microbatch_size / profile.microbatch_size
    scaled = (
        f"scaled from microbatches of {profile.microbatch_size} to {microbatch_size}: {ASSUMPTION}"
    )
    graph = _scaled(profile.graph, share)
    variants = tuple(_scaled_variant(variant, share) for variant in profile.variants)
    where = f"microbatches of {microbatch_size}"
    check_graph(graph, where)
    check_variants(graph, variants, where)
    warnings = (*profile.warnings, scaled)
    made = {"graph": graph, "variants": variants, "whole": None, "warnings": warnings}
    return msgspec.structs.replace(profile, microbatch_size=microbatch_size, **made)


def _scaled(graph: LayerGraph, share: float) -> LayerGraph:
    """The graph with `share` times the samples in each microbatch."""
    values = (
        msgspec.structs.replace(
            v,
            bytes=_scaled_bytes(v.bytes, share),
            grad_extra_bytes=_scaled_bytes(v.grad_extra_bytes, share),
        )
        for v in graph.values
    )
    inputs = (msgspec.structs.replace(i, bytes=_scaled_bytes(i.bytes, share)) for i in graph.inputs)
    return msgspec.structs.replace(
        graph,
        layers=tuple(_scaled_layer(layer, share) for layer in graph.layers),
        values=tuple(values),
        inputs=tuple(inputs),
    )


def _scaled_variant(variant: GroupVariant, share: float) -> GroupVariant:
    """The variant with `share` times the samples. Collectives once per step sum gradients, and do not change."""
    scaled = tuple(
        LayerCollectives(
            layer=own.layer,
            collectives=tuple(_scaled_collective(one, share) for one in own.collectives),
        )
        for own in variant.collectives
    )
    loaded = variant.loaded
    if loaded is not msgspec.UNSET:
        more = tuple(_scaled_layer(layer, share) for layer in loaded.layers)
        loaded = msgspec.structs.replace(loaded, layers=more)
    graph = _scaled(variant.graph, share)
    return msgspec.structs.replace(variant, graph=graph, collectives=scaled, loaded=loaded)


def _scaled_collective(one: Collective, share: float) -> Collective:
    if one.phase == "step":
        return one
    more = {"compute_time": share * one.compute_time} if isinstance(one.compute_time, float) else {}
    return msgspec.structs.replace(one, bytes=_scaled_bytes(one.bytes, share), **more)


def _scaled_layer(layer: Layer, share: float) -> Layer:
    """The layer with `share` times the samples: only its seconds and bytes per microbatch change."""
    workspace = layer.backward_workspace_bytes
    return msgspec.structs.replace(
        layer,
        forward_time=share * layer.forward_time,
        input_grad_time=share * layer.input_grad_time,
        weight_grad_time=share * layer.weight_grad_time,
        split_time=share * layer.split_time,
        pair_time=layer.pair_time and share * layer.pair_time,
        forward_spread=share * layer.forward_spread,
        input_grad_spread=share * layer.input_grad_spread,
        weight_grad_spread=share * layer.weight_grad_spread,
        forward_flops=round(share * layer.forward_flops),
        stash_bytes=_scaled_bytes(layer.stash_bytes, share),
        workspace_bytes=_scaled_bytes(layer.workspace_bytes, share),
        backward_workspace_bytes=None if workspace is None else _scaled_bytes(workspace, share),
        recompute=layer.recompute and _scaled_recompute(layer.recompute, share),
        selective=layer.selective and _scaled_recompute(layer.selective, share),
        split_backward=layer.split_backward and _scaled_split(layer.split_backward, share),
    )


def _scaled_recompute(recompute: Recompute, share: float) -> Recompute:
    return Recompute(
        extra_time=share * recompute.extra_time,
        stash_bytes=_scaled_bytes(recompute.stash_bytes, share),
    )


def _scaled_split(split: SplitBackward, share: float) -> SplitBackward:
    sizes = msgspec.structs.asdict(split)
    return SplitBackward(**{name: _scaled_bytes(size, share) for name, size in sizes.items()})


def _scaled_bytes(size: int, share: float) -> int:
    return math.ceil(share * size)
