"""The JSON document for a profile. Times are seconds, sizes are bytes."""

import msgspec

from autopart.records.pace import Pace
from autopart.records.profile import Profile, stash_error, time_error


class LayerSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One profiled layer, for one microbatch."""

    name: str
    """The layer's module path."""
    kind: str
    """The class name of the layer's module."""
    forward_time: float
    """Seconds that the forward takes."""
    input_grad_time: float
    """Seconds that the input-gradient part takes in backward (I)."""
    weight_grad_time: float
    """Seconds that the weight-gradient part takes in backward (W)."""
    stash_bytes: int
    """Bytes kept inside the layer from forward to backward."""
    param_bytes: int
    """Bytes that the parameters take."""
    output_bytes: int
    """Bytes in all values that the layer produces."""
    share: float
    """The layer's share in the time that all layers take, 0 to 1."""
    same_as: str | None
    """The layer whose measurement this layer shares; null where it has its own."""


class ProfileSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The document that `autopart profile --json` prints."""

    profile: str
    """Profile file."""
    model: str
    """The model as it was named on the command line."""
    method: str
    """How the times were made: `measured`, `analytic` or `imported`."""
    device: str
    """The device's name."""
    dtype: str
    """Dtype for parameters and activations."""
    microbatch_size: int
    """Samples per microbatch."""
    num_params: int
    """How many parameters the model has."""
    layers: tuple[LayerSummary, ...]
    """All layers, in execution order."""
    time_error: float | None
    """Summed layer time over the whole model's time, minus 1; null without that comparison."""
    stash_error: float | None
    """Summed layer stash over the whole model's stash, minus 1; null without that comparison."""
    pace: Pace | None
    """The machine's pace during the measurement; null where nothing was measured."""
    warnings: tuple[str, ...]
    """Warnings from the profiler."""


def profile_summary(profile: Profile, path: str) -> ProfileSummary:
    """The figures for a profile that was written to `path`."""
    layers = profile.graph.layers
    times = [la.forward_time + la.input_grad_time + la.weight_grad_time for la in layers]
    total = sum(times) or 1.0
    outputs = {layer.name: 0 for layer in layers}
    for value in profile.graph.values:
        outputs[value.producer] += value.bytes
    rows = tuple(
        LayerSummary(
            name=layer.name,
            kind=layer.kind,
            forward_time=layer.forward_time,
            input_grad_time=layer.input_grad_time,
            weight_grad_time=layer.weight_grad_time,
            stash_bytes=layer.stash_bytes,
            param_bytes=layer.param_bytes,
            output_bytes=outputs[layer.name],
            share=time / total,
            same_as=layer.same_as,
        )
        for layer, time in zip(layers, times, strict=True)
    )
    return ProfileSummary(
        profile=path,
        model=profile.source.model,
        method=profile.method,
        device=profile.device.name,
        dtype=profile.dtype,
        microbatch_size=profile.microbatch_size,
        num_params=profile.source.num_params,
        layers=rows,
        time_error=time_error(profile.whole) if profile.whole else None,
        stash_error=stash_error(profile.whole) if profile.whole else None,
        pace=None if profile.pace is msgspec.UNSET else profile.pace,
        warnings=profile.warnings,
    )
