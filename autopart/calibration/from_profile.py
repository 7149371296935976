"""A calibration from a measured profile: its layers' F, I and W beside those of the same model on meta."""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from autopart.calibration.fit import Row, Stretches, fit_stretches, most_share
from autopart.calibration.kinds import CalibratedDevice, Wanted, parts_of, profiles_by_kind
from autopart.errors import ProfileError, UsageError
from autopart.records.calibration import Calibration, Validity
from autopart.records.kernels import KINDS, kernels_of, with_peaks
from autopart.records.known_gpus import GPUS, find_gpu
from autopart.records.layer_graph import Layer
from autopart.records.profile import Profile

_LEAST_SHARE = 0.005
"""Share in the seconds of all unlike layers below which a layer's phase is no row: such times are mostly noise."""
_PHASES = ("F", "I", "W")


def calibrate_from_profile(
    measured: Profile, made_from: str, *, gpu: str | None, target: str, kinds: Sequence[str] = ()
) -> tuple[Calibration, Stretches]:
    """The calibration of the device of `measured`, and the fit behind it.

    `gpu` names the known GPU; by default the device's name says it. Raises ProfileError for a profile that was not
    measured or whose layers differ from the model's, UsageError for too few rows.
    """
    if measured.method != "measured":
        raise ProfileError(
            f"{made_from} is {measured.method}; a calibration needs a measured profile"
        )
    found = find_gpu(gpu or _gpu_of(measured))
    device = CalibratedDevice(found.name, measured.dtype, kernels_of(found, target))
    granularity = _granularity(measured)
    wanted = Wanted(measured.source.model, measured.microbatch_size, granularity=granularity)
    base, slower = profiles_by_kind(wanted, device, KINDS)
    if [layer.name for layer in base.graph.layers] != [la.name for la in measured.graph.layers]:
        raise ProfileError(
            f"{made_from}: the layers are not those of {measured.source.model} on meta; profile the model anew"
        )
    parts = parts_of(lambda profile: _seconds(profile.graph.layers), base, slower)
    seconds = _seconds(measured.graph.layers)
    names = [f"{layer.name} {phase}" for layer in measured.graph.layers for phase in _PHASES]
    # Layers that share one measurement are one row for each phase.
    unlike = [layer.same_as is None for layer in measured.graph.layers for _ in _PHASES]
    own_rows = [
        Row(name, name.partition(" ")[0], own.fixed, own.kinds, time)
        for name, own, time, is_own in zip(names, parts, seconds, unlike, strict=True)
        if is_own
    ]
    least = _LEAST_SHARE * sum(row.measured for row in own_rows)
    rows = [row for row in own_rows if row.measured > least]
    fitted = fit_stretches(rows, device.table.shares, kinds, most_share(found.name))
    kernels = msgspec.structs.replace(device.table, shares=fitted.shares)
    kernels = with_peaks(kernels, found, measured.dtype)
    return Calibration(
        gpu=found.name,
        dtype=measured.dtype,
        kernels=kernels,
        source="profile",
        made_from=made_from,
        fit=fitted.fit,
        validity=Validity(
            least_params=max(1, measured.source.num_params),
            most_params=max(1, measured.source.num_params),
            microbatch_sizes=(measured.microbatch_size,),
        ),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    ), fitted


def _gpu_of(measured: Profile) -> str:
    """The known GPU of the profile's device."""
    if measured.device.kind == "cpu":
        return "cpu"
    for gpu in GPUS.values():
        if measured.device.name in gpu.cuda_names:
            return gpu.name
    raise UsageError(f"the device '{measured.device.name}' is no known GPU; name one with --gpu")


def _granularity(measured: Profile) -> str:
    """Modules, where the profile's layers lie inside of numbered blocks; else blocks."""
    names = [layer.name for layer in measured.graph.layers]
    inside = any(part.isdecimal() for name in names for part in name.split(".")[:-1])
    return "module" if inside else "block"


def _seconds(layers: Sequence[Layer]) -> list[float]:
    return [
        seconds
        for layer in layers
        for seconds in (layer.forward_time, layer.input_grad_time, layer.weight_grad_time)
    ]
