"""Profiles of one model at several microbatch sizes, measured or scaled.

A size that was not measured is scaled from the measured size nearest to it, in ratio. What is assumed then:
the times of forward and backward, stash, workspace, values and inputs are proportional to the samples;
parameters, gradients, buffers and the optimizer's step do not depend on them. Small microbatches are
slower than that on a GPU, so that a size scaled down is flattered, and one scaled up wronged.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from autopart.errors import AutopartError, ProfileError
from autopart.graph import Halves, Layer, LayerGraph, Recompute
from autopart.profile import Profile, profile_hash

MICROBATCHES_PER_GPU = 4
"""Where no batch is named: enough that a pipeline over all GPUs idles less than a quarter."""

ASSUMPTION = (
    "times, stash, workspace, values and inputs proportional to samples; "
    "parameters and the optimizer's step unchanged"
)


class Sized(NamedTuple):
    """A model at one microbatch size."""

    profile: Profile
    """At that size: measured, or scaled to it."""
    profile_hash: str
    """Of the profile that was measured."""
    profiled_size: int
    """The microbatch size that it was measured at."""


def at_sizes(profiles: Sequence[Profile], sizes: Sequence[int] = ()) -> tuple[Sized, ...]:
    """The model at each of `sizes`, smallest first; at those of the profiles where none is named.

    Raises ProfileError unless the profiles are of one model on one device in one dtype, and
    AutopartError where a size is below 1 or named twice.
    """
    check_same_model(profiles)
    measured = {profile.microbatch_size: profile for profile in profiles}
    for size in sizes:
        if size < 1 or sizes.count(size) > 1:
            what = "is named twice" if size > 0 else "is below 1"
            raise AutopartError(f"microbatch size {size} {what}; name each size once, from 1 on")
    return tuple(
        at_size(measured[_nearest(list(measured), size)], size)
        for size in sorted(sizes or measured)
    )


def at_size(profile: Profile, microbatch_size: int) -> Sized:
    """The model at one size, scaled where the profile has another."""
    return Sized(
        scale_profile(profile, microbatch_size), profile_hash(profile), profile.microbatch_size
    )


def samples(
    sizes: Sequence[int],
    num_gpus: int,
    num_microbatches: int | None,
    global_batch: int | None,
) -> int:
    """The samples of one step: those of `num_microbatches` or `global_batch`, of which at most one
    is given, else a batch that gives each GPU some microbatches of every size.

    Raises AutopartError where it is no multiple of each size, or where several sizes leave open
    which one `num_microbatches` counts.
    """
    if num_microbatches is not None:
        if len(sizes) > 1:
            raise AutopartError(
                f"{num_microbatches} microbatches of which size? {_listed(sizes)} are searched; "
                "give the batch in samples (--global-batch)"
            )
        if num_microbatches < 1:
            raise AutopartError(f"{num_microbatches} microbatches: there must be at least 1")
        return num_microbatches * sizes[0]
    if global_batch is None:
        return MICROBATCHES_PER_GPU * num_gpus * math.lcm(*sizes)
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
    return ", ".join(map(str, sizes))


def _nearest(measured: Sequence[int], size: int) -> int:
    return min(measured, key=lambda own: (abs(math.log(own / size)), own))


def check_same_model(profiles: Sequence[Profile]) -> None:
    """Raise ProfileError unless the profiles differ in their microbatch sizes, and in nothing that
    makes them profiles of different models or devices.

    The hash of the captured graph covers shapes, hence the microbatch size, so it cannot be compared.
    """
    if not profiles:
        raise ProfileError("no profile is given; give at least one")
    first = profiles[0]
    for one, other in itertools.combinations(profiles, 2):
        if one.microbatch_size == other.microbatch_size:
            raise ProfileError(
                f"two profiles have microbatches of {one.microbatch_size}; give one of each size"
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
    """What makes two profiles belong to different models, devices or dtypes."""
    named = [
        ("model", one.source.model, other.source.model),
        ("device", one.device.name, other.device.name),
        ("threads of the device", one.device.threads, other.device.threads),
        ("dtype", one.dtype, other.dtype),
        ("method", one.method, other.method),
        ("number of parameters", one.source.num_params, other.source.num_params),
        ("number of layers", len(one.graph.layers), len(other.graph.layers)),
    ]
    for what, mine, theirs in named:
        if mine != theirs:
            return f"the {what} is {mine} and {theirs}"
    for mine, theirs in zip(one.graph.layers, other.graph.layers, strict=True):
        if _unsized(mine) != _unsized(theirs):
            return f"layer '{mine.name}' ({mine.kind}) and '{theirs.name}' ({theirs.kind}) differ"
    if _flow(one.graph) != _flow(other.graph):
        return "values, inputs or tied parameters lie between different layers"
    return None


def _unsized(layer: Layer) -> tuple[object, ...]:
    """What a layer is, whatever the microbatch size."""
    return (
        layer.name,
        layer.kind,
        layer.param_bytes,
        layer.grad_bytes,
        layer.num_trainable,
        layer.buffer_bytes,
    )


def _flow(graph: LayerGraph) -> object:
    values = {(v.producer, v.consumers, v.has_gradient) for v in graph.values}
    return values, {i.consumers for i in graph.inputs}, set(graph.tied)


def scale_profile(profile: Profile, microbatch_size: int) -> Profile:
    """The profile at another microbatch size, by the assumption above; bytes are rounded up.

    The profile itself where it has that size already.
    """
    if microbatch_size == profile.microbatch_size:
        return profile
    share = microbatch_size / profile.microbatch_size
    scaled = (
        f"scaled from microbatches of {profile.microbatch_size} to {microbatch_size}: {ASSUMPTION}"
    )
    return msgspec.structs.replace(
        profile,
        microbatch_size=microbatch_size,
        graph=_scaled(profile.graph, share),
        whole=None,
        warnings=(*profile.warnings, scaled),
    )


def _scaled(graph: LayerGraph, share: float) -> LayerGraph:
    return msgspec.structs.replace(
        graph,
        layers=tuple(_scaled_layer(layer, share) for layer in graph.layers),
        values=tuple(
            msgspec.structs.replace(
                v,
                bytes=math.ceil(share * v.bytes),
                grad_extra_bytes=math.ceil(share * v.grad_extra_bytes),
            )
            for v in graph.values
        ),
        inputs=tuple(
            msgspec.structs.replace(i, bytes=math.ceil(share * i.bytes)) for i in graph.inputs
        ),
    )


def _scaled_layer(layer: Layer, share: float) -> Layer:
    def again(way: Recompute | None) -> Recompute | None:
        return way and Recompute(
            extra_time=share * way.extra_time, stash_bytes=math.ceil(share * way.stash_bytes)
        )

    def halves(of: Halves | None) -> Halves | None:
        sizes = msgspec.structs.asdict(of) if of else {}
        return of and Halves(**{name: math.ceil(share * size) for name, size in sizes.items()})

    return msgspec.structs.replace(
        layer,
        forward_time=share * layer.forward_time,
        input_grad_time=share * layer.input_grad_time,
        weight_grad_time=share * layer.weight_grad_time,
        split_time=share * layer.split_time,
        forward_spread=share * layer.forward_spread,
        input_grad_spread=share * layer.input_grad_spread,
        weight_grad_spread=share * layer.weight_grad_spread,
        forward_flops=round(share * layer.forward_flops),
        stash_bytes=math.ceil(share * layer.stash_bytes),
        workspace_bytes=math.ceil(share * layer.workspace_bytes),
        backward_workspace_bytes=None
        if layer.backward_workspace_bytes is None
        else math.ceil(share * layer.backward_workspace_bytes),
        recompute=again(layer.recompute),
        selective=again(layer.selective),
        halves=halves(layer.halves),
    )
