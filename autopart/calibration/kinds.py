"""Analytic profiles whose kernels of one kind are slower: they show how a figure depends on each kind."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from autopart.records.calibration import Calibration
from autopart.records.kernels import KINDS, Kernels, stretched
from autopart.records.profile import Profile
from autopart.runtime.profiling.options import ProfileOptions
from autopart.runtime.profiling.profiler import profile_with_options

_STRETCH = 2.0


class Wanted(NamedTuple):
    """One analytic profile that rows need."""

    model: str
    microbatch_size: int
    degrees: tuple[int, ...] = ()
    """Tensor degrees beside 1."""
    granularity: str = "block"


class CalibratedDevice(NamedTuple):
    """The GPU, the dtype and the table of shares from which a calibration starts."""

    gpu: str
    dtype: str
    table: Kernels


class Parts(NamedTuple):
    """One predicted figure in seconds."""

    fixed: float
    """Seconds that no stretch changes."""
    kinds: tuple[float, ...]
    """Seconds in each kind of kernels, in the order of `KINDS`."""


def profiles_by_kind(
    wanted: Wanted, device: CalibratedDevice, kinds: Sequence[str]
) -> tuple[Profile, dict[str, Profile]]:
    """The model's profile at the table's shares, and one with each of `kinds` at half its share."""
    return _profile(wanted, device, device.table), {
        kind: _profile(wanted, device, stretched(device.table, kind, _STRETCH)) for kind in kinds
    }


def parts_of(
    figures: Callable[[Profile], Sequence[float]], base: Profile, slower: dict[str, Profile]
) -> list[Parts]:
    """Each figure of `base` in seconds per kind, by what it gains where the kind is twice as slow.

    Figures are sums of kernels, and a maximum with the host's floor at times. So this is exact as far as no maximum turns.
    """
    own = figures(base)
    others = {kind: figures(profile) for kind, profile in slower.items()}
    found: list[Parts] = []
    for place, seconds in enumerate(own):
        kinds = tuple(
            max(0.0, others[kind][place] - seconds) / (_STRETCH - 1.0) if kind in others else 0.0
            for kind in KINDS
        )
        found.append(Parts(seconds - sum(kinds), kinds))
    return found


def _profile(wanted: Wanted, device: CalibratedDevice, kernels: Kernels) -> Profile:
    given = Calibration(gpu=device.gpu, dtype=device.dtype, kernels=kernels, source="hand")
    return profile_with_options(
        wanted.model,
        ProfileOptions(
            microbatch_size=wanted.microbatch_size,
            dtype=device.dtype,
            device="meta",
            gpu=device.gpu,
            calibration=given,
            granularity="module" if wanted.granularity == "module" else "block",
            tensor=wanted.degrees,
        ),
    )
