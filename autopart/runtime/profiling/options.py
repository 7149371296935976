"""The options of a profile: one record, which Python callers and the command line share."""

from dataclasses import dataclass
from typing import TypedDict, get_args

import torch

from autopart.errors import UsageError
from autopart.records.calibration import (
    Calibration,
    calibrated_kernels,
    check_calibration,
    check_dtype,
)
from autopart.records.gpu import Gpu
from autopart.records.kernels import Kernels, kernels_of
from autopart.records.profile import MAX_SPREAD
from autopart.records.rank_group import MOST_DEGREE
from autopart.runtime.capture.capture import Granularity
from autopart.runtime.measuring.progress import ProgressListener
from autopart.runtime.models.precision import dtype_of
from autopart.runtime.profiling.devices import DeviceKind, checked_device
from autopart.runtime.transforms.compiled_segments import check_compiler
from autopart.units import format_share


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileOptions:
    """Everything that a user may fix for a profile, in the user's own words."""

    microbatch_size: int = 1
    """Samples per microbatch."""
    sequence_length: int | None = None
    """Positions of sequences of whole numbers in the example batch. None: as the model's example has them."""
    dtype: str | None = None
    """Dtype to which parameters, buffers and batch are cast. None: all keep their own dtypes."""
    device: str = "cpu"
    """Device to measure on: "cpu" or "cuda". On "meta" times come from the roofline of `gpu`."""
    gpu: str | None = None
    """A known GPU's name, for device "meta" only."""
    target: str | None = None
    """The framework whose kernels count on "meta" (`autopart.records.kernels.TARGETS`). None: the plain roofline,
    or the target of the calibration."""
    calibration: Calibration | None = None
    """Measured shares for the kernels of `gpu`, on "meta"."""
    warmup: int = 2
    """Rounds before the rounds that count."""
    repeats: int = 10
    """Rounds that count. Up to three times as many run until the last ones agree."""
    max_spread: float = MAX_SPREAD
    """Largest step scatter at which rounds agree: interquartile range over median."""
    each: bool = False
    """Whether identical layers keep their own times. Otherwise they share one median."""
    granularity: Granularity = "block"
    """Layers are the repeated blocks ("block") or all leaf modules ("module")."""
    compile: bool = False
    """Whether times are for graphs under torch's compiler. Bytes are for graphs without it."""
    tensor: tuple[int, ...] = ()
    """Tensor degrees for which one rank's layers are profiled too. Degree 1 is the profile itself."""
    sequence_parallel: bool = False
    """Whether each degree above 1 is profiled with sequence parallelism as well."""
    context: tuple[int, ...] = ()
    """Context degrees for which one rank's layers are profiled too, alone and with each tensor degree."""
    expert: tuple[int, ...] = ()
    """Expert degrees for which one rank's layers are profiled too, alone and with each tensor and context degree."""
    pairs: bool = False
    """Whether each layer's forward is timed beside its backward too, for overlapped pairs."""
    progress: ProgressListener | None = None
    """Listener that learns how far the profiler is."""


class ProfileKeywords(TypedDict, total=False):
    """The fields of `ProfileOptions` as keywords, for `autopart.profile_model(model, ...)`."""

    microbatch_size: int
    sequence_length: int | None
    dtype: str | None
    device: str
    gpu: str | None
    target: str | None
    calibration: Calibration | None
    warmup: int
    repeats: int
    max_spread: float
    each: bool
    granularity: Granularity
    compile: bool
    tensor: tuple[int, ...]
    sequence_parallel: bool
    context: tuple[int, ...]
    expert: tuple[int, ...]
    pairs: bool
    progress: ProgressListener | None


def checked_options(options: ProfileOptions) -> tuple[DeviceKind, Gpu | None]:
    """Check the options and return the device and, on meta, the GPU whose roofline counts.

    Raises UsageError for options that are unknown or contradict each other, ModelError for an
    unknown dtype, ClusterError for an unknown GPU.
    """
    found = checked_device(options.device, options.gpu)
    _check_kernels(options, found[1])
    if options.dtype is not None:
        dtype_of(options.dtype)
    if options.compile:
        if options.device == "meta":
            raise UsageError(
                "--compile measures compiled graphs, and on meta nothing runs; drop one"
            )
        check_compiler(torch.device(options.device))
    _check_degrees(options)
    if options.granularity not in get_args(Granularity):
        known = ", ".join(get_args(Granularity))
        raise UsageError(f"unknown granularity '{options.granularity}'; known: {known}")
    _check_count("microbatch-size", options.microbatch_size, 1)
    _check_count("warmup", options.warmup, 0)
    _check_count("repeats", options.repeats, 1)
    if not options.max_spread > 0.0:
        share = format_share(options.max_spread)
        raise UsageError(f"--max-spread {share}: times always scatter a little")
    return found


def kernels_asked(options: ProfileOptions, gpu: Gpu) -> Kernels | None:
    """Return the kernel model that the options ask for; None for the plain roofline."""
    if options.calibration is not None:
        return calibrated_kernels(options.calibration)
    return None if options.target is None else kernels_of(gpu, options.target)


def _check_kernels(options: ProfileOptions, gpu: Gpu | None) -> None:
    given, target = options.calibration, options.target
    if gpu is None:
        if given is not None or target is not None:
            option = "--target" if given is None else "--calibrate"
            raise UsageError(
                f"{option} goes with --device meta; on {options.device} times are measured"
            )
        return
    if target is not None:
        kernels_of(gpu, target)
    if given is None:
        return
    check_calibration(given, gpu)
    if options.dtype is not None:
        check_dtype(given, options.dtype)
    if target not in (None, given.kernels.target):
        raise UsageError(
            f"--target {target}: the calibration is for {given.kernels.target}; drop --target, or calibrate anew"
        )


def _degrees_asked(options: ProfileOptions) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return ("tensor", options.tensor), ("context", options.context), ("expert", options.expert)


def _check_degrees(options: ProfileOptions) -> None:
    for kind, degrees in _degrees_asked(options):
        for place, degree in enumerate(degrees):
            if not 1 <= degree <= MOST_DEGREE:
                raise UsageError(f"--{kind} {degree}: a {kind} degree is 1 to {MOST_DEGREE}")
            if degree in degrees[:place]:
                raise UsageError(f"--{kind} has {degree} twice")
        if options.compile and any(degree > 1 for degree in degrees):
            raise UsageError(
                f"--compile does not take graphs with collectives, which --{kind} makes; drop one"
            )
    if options.sequence_parallel and not any(degree > 1 for degree in options.tensor):
        raise UsageError("--sequence-parallel needs --tensor with a degree above 1")


def _check_count(option: str, count: int, least: int) -> None:
    if count < least:
        raise UsageError(f"--{option} {count}: it must be at least {least}")
