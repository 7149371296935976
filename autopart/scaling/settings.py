"""A measured profile at another setting: microbatch, sequence, dtype or GPU.

Symbols   t      measured seconds of a layer's phase
          a, b   its seconds under the kernel model, at the measured setting and at the new one

    seconds at the new setting = t b / a

So the kernel model's error is assumed to be the same share at both settings. Bytes are not scaled. The model is captured at
the new setting, on tensors without memory, and its bytes are counted as in every analytic profile.
"""

from typing import NamedTuple

import msgspec

from autopart.errors import ProfileError, UsageError
from autopart.records.known_gpus import GPUS, find_gpu
from autopart.records.layer_graph import Layer, Recompute
from autopart.records.profile import Profile
from autopart.runtime.capture.capture import Granularity
from autopart.runtime.profiling.options import ProfileOptions
from autopart.runtime.profiling.profiler import profile_with_options

_PHASES = ("forward_time", "input_grad_time", "weight_grad_time", "update_time")


class ScaledSetting(NamedTuple):
    """What changes; None stays as measured."""

    microbatch_size: int | None = None
    sequence_length: int | None = None
    """Positions of each sample's sequence."""
    dtype: str | None = None
    gpu: str | None = None


def scale_to(
    measured: Profile, made_from: str, setting: ScaledSetting, target: str = "torch"
) -> Profile:
    """The profile at `setting`, analytic, with its assumption among its warnings and in its calibration.

    Raises ProfileError for a profile that was not measured, or whose layers are not the model's; UsageError and ClusterError for a
    device or GPU that is not known; and the errors of the profiler.
    """
    if measured.method != "measured":
        raise ProfileError(
            f"{made_from} is {measured.method}; only a measured profile is scaled, so profile the model at the other setting"
        )
    here = _gpu_of(measured)
    there = here if setting.gpu is None else find_gpu(setting.gpu).name
    told = _told(measured, setting, here, there)
    own = ProfileOptions(
        microbatch_size=measured.microbatch_size,
        dtype=None if measured.own_dtypes is True else measured.dtype,
        device="meta",
        gpu=here,
        target=target,
        granularity=_granularity(measured),
    )
    base = profile_with_options(measured.source.model, own)
    _check_layers(measured, base, made_from)
    new = profile_with_options(
        measured.source.model,
        ProfileOptions(
            microbatch_size=setting.microbatch_size or measured.microbatch_size,
            sequence_length=setting.sequence_length,
            dtype=setting.dtype or own.dtype,
            device="meta",
            gpu=there,
            target=target,
            granularity=own.granularity,
        ),
    )
    _check_layers(measured, new, made_from)
    layers = zip(measured.graph.layers, base.graph.layers, new.graph.layers, strict=True)
    graph = msgspec.structs.replace(new.graph, layers=tuple(_scaled(*each) for each in layers))
    assert new.kernels is not msgspec.UNSET
    kernels = msgspec.structs.replace(
        new.kernels.kernels, calibration=f"{made_from}, measured on {measured.device.name}: {told}"
    )
    assumption = (
        f"scaled from {made_from}: {told}; each layer's measured seconds times the kernel model's ratio between both settings; "
        "bytes counted at the new setting"
    )
    return msgspec.structs.replace(
        new,
        kernels=msgspec.structs.replace(new.kernels, kernels=kernels),
        graph=graph,
        whole=None,
        warnings=(*new.warnings, assumption),
    )


def _scaled(measured: Layer, base: Layer, new: Layer) -> Layer:
    """The new layer with measured seconds times the model's ratio. A phase that one of both lacks stays the model's."""
    factors = {phase: _factor(getattr(measured, phase), getattr(base, phase)) for phase in _PHASES}
    fields: dict[str, object] = {p: getattr(new, p) * factor for p, factor in factors.items()}
    # What a split backward adds has no measured ratio of its own where the model knows none.
    fields["split_time"] = measured.split_time * _ratio(measured, base, new)
    for policy in ("recompute", "selective"):
        own, was, then = (getattr(layer, policy) for layer in (measured, base, new))
        if then is not None and was is not None and own is not None:
            time = then.extra_time * _factor(own.extra_time, was.extra_time)
            fields[policy] = Recompute(extra_time=time, stash_bytes=then.stash_bytes)
    return msgspec.structs.replace(new, **fields)


def _factor(measured: float, modelled: float) -> float:
    return measured / modelled if measured > 0.0 and modelled > 0.0 else 1.0


def _ratio(measured: Layer, base: Layer, new: Layer) -> float:
    """The factor between both settings of a layer's forward and backward together."""
    phases = _PHASES[:3]
    before, after = (sum(getattr(layer, p) for p in phases) for layer in (base, new))
    return after / before if before > 0.0 and measured.split_time > 0.0 else 0.0


def _gpu_of(measured: Profile) -> str:
    """The known GPU of the profile's device."""
    if measured.device.kind == "cpu":
        return "cpu"
    for gpu in GPUS.values():
        if measured.device.name in gpu.cuda_names:
            return gpu.name
    raise UsageError(
        f"the device '{measured.device.name}' is no known GPU, so its seconds cannot be scaled"
    )


def _granularity(measured: Profile) -> Granularity:
    """Modules, where the profile's layers lie inside of numbered blocks; else blocks."""
    names = [layer.name for layer in measured.graph.layers]
    inside = any(part.isdecimal() for name in names for part in name.split(".")[:-1])
    return "module" if inside else "block"


def _check_layers(measured: Profile, other: Profile, made_from: str) -> None:
    names = [layer.name for layer in measured.graph.layers]
    if [layer.name for layer in other.graph.layers] != names:
        raise ProfileError(
            f"{made_from}: the layers are not those of {measured.source.model} now; profile the model anew"
        )


def _told(measured: Profile, setting: ScaledSetting, here: str, there: str) -> str:
    """The changes in words; raises UsageError where nothing changes."""
    changes = [
        ("microbatch", measured.microbatch_size, setting.microbatch_size),
        ("dtype", measured.dtype, setting.dtype),
        ("GPU", here, None if setting.gpu is None else there),
    ]
    words = [
        f"{what} {before} to {after}"
        for what, before, after in changes
        if after is not None and after != before
    ]
    if setting.sequence_length is not None:
        words.append(f"sequence of {setting.sequence_length}")
    if not words:
        raise UsageError("nothing changes: the profile has this setting already")
    return ", ".join(words)
