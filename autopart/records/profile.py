"""One model's profile, measured or analytic, and its file.

The profile has everything about the model that a solver needs, and nothing that is executed. It also
says how it was made, and how far the sum over its layers is from the whole model.
"""

import stat
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec

from autopart.errors import ProfileError
from autopart.records.files import content_hash, decode, encode, read_file, write_record
from autopart.records.graph_check import check_graph
from autopart.records.group_variants import GroupVariant, check_variants
from autopart.records.kernels import KernelModel
from autopart.records.layer_graph import LayerGraph
from autopart.records.pace import Pace
from autopart.records.shown import html_of
from autopart.records.upgrades import profile_as_1
from autopart.units import Bytes, Count, PositiveCount, Seconds

FORMAT = "autopart-profile"
VERSION = 4

MAX_SPREAD = 0.10
"""Interquartile range divided by median step time, above which more rounds are measured."""


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The device that the profile was made on."""

    kind: Literal["cpu", "cuda", "meta"]
    """The device kind in torch; "meta" where nothing ran."""
    name: str
    """The device's own name, or the GPU whose roofline was used."""
    threads: Count | None = None
    """Compute threads during the measurement, on a CPU."""
    memory_bytes: Bytes | None = None
    """Device memory; null where unknown."""


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which model was profiled."""

    model: str
    """The model as the user named it: `model.py`, `package.module:function`, `zoo:gpt2-tiny`."""
    graph_hash: str
    """Hash over the captured computation: names, operations and shapes, without weights."""
    num_params: Count
    """How many parameter elements the model has."""
    software: dict[str, str]
    """Versions on which the times depend, such as python, torch and autopart."""


class WholeModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole model measured at once, next to the sums over its layers: the profile's error."""

    forward_time: Seconds
    """Forward seconds, measured at once."""
    backward_time: Seconds
    """Backward seconds, measured at once."""
    layers_forward_time: Seconds
    """Forward seconds, summed over layers."""
    layers_backward_time: Seconds
    """Backward seconds, summed over layers."""
    stash_bytes: Bytes
    """Bytes that autograd keeps after one forward through the whole model, without inputs."""
    layers_stash_bytes: Bytes
    """Stash bytes, summed over layers."""


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model's seconds and bytes, layer by layer, for one microbatch on one device."""

    format: Literal["autopart-profile"] = FORMAT
    version: Literal[4] = VERSION
    method: Literal["measured", "analytic", "imported"]
    """How the profile was made: measured, computed from a datasheet, or imported from a file."""
    source: Source
    """Which model was profiled."""
    device: Device
    """The device that the profile was made on."""
    dtype: str
    """The dtype in which the model was profiled; with several dtypes, the most frequent."""
    own_dtypes: Literal[True] | msgspec.UnsetType = msgspec.UNSET
    """True where the model and its batch kept several dtypes; absent where all have one."""
    microbatch_size: PositiveCount
    """Samples per microbatch."""
    kernels: KernelModel | msgspec.UnsetType = msgspec.UNSET
    """The kernel model behind an analytic profile's times; absent for the plain roofline, and for other profiles."""
    warmup: Count = 0
    """Rounds before the measured ones."""
    repeats: Count = 0
    """Measured rounds; times are their medians."""
    pace: Pace | msgspec.UnsetType = msgspec.UNSET
    """The machine's pace during the measurement; absent where nothing was measured, and in older profiles."""
    graph: LayerGraph
    """The layers and the values between them."""
    variants: tuple[GroupVariant, ...] = ()
    """The layers as one GPU of a rank group runs them, for each group that was profiled; one GPU alone is `graph` itself."""
    whole: WholeModel | None = None
    """The whole model measured at once; null where the profile was not measured, or was scaled."""
    warnings: tuple[str, ...] = ()
    """Doubts about the figures, in words."""
    created: Annotated[str, msgspec.Meta(description="ISO 8601, UTC")] = ""
    """Time of creation (ISO 8601, UTC)."""

    def _repr_html_(self) -> str:
        """The profile in a notebook."""
        return html_of(self)


def calibration_of(profile: Profile) -> str | None:
    """The calibration behind an analytic profile, in words; None without one."""
    return None if profile.kernels is msgspec.UNSET else profile.kernels.kernels.calibration


def time_error(whole: WholeModel) -> float:
    """Seconds summed over layers divided by the whole model's seconds, minus 1."""
    layers = whole.layers_forward_time + whole.layers_backward_time
    return layers / (whole.forward_time + whole.backward_time) - 1


def stash_error(whole: WholeModel) -> float:
    """Stash summed over layers divided by the whole model's stash, minus 1."""
    return whole.layers_stash_bytes / whole.stash_bytes - 1 if whole.stash_bytes else 0.0


def load_profile(path: Path | str) -> Profile:
    """Read a profile file; raises FileError, or ProfileError where it contradicts itself."""
    profile = read_file(Path(path), Profile, FORMAT, VERSION)
    _check(profile, where=str(path))
    return profile


def check_profile(profile: Profile, where: str) -> None:
    """Raise FileError where a profile made in Python could not be read from a file."""
    _check(profile, where)
    decode(encode(profile), Profile, FORMAT, VERSION, where=f"{where}: as a profile")


def save_profile(profile: Profile, path: Path | str) -> None:
    """Write a profile file, whole or not at all; raises ProfileError where it contradicts itself."""
    _check(profile, where=str(path))
    write_record(Path(path), profile, FORMAT, VERSION)


class NewestProfile(NamedTuple):
    """The profile changed last in a folder."""

    path: Path
    """The profile's file."""
    skipped: tuple[str, ...]
    """Entries that may be profiles but cannot be read, each with the reason."""


def newest_profile(folder: Path) -> NewestProfile:
    """The profile changed last in `folder`; raises ProfileError where there is none.

    Folders, pipes, links that lead nowhere and files without permission are skipped.
    """
    changed: dict[Path, int] = {}
    skipped: list[str] = []
    for path in sorted(folder.glob("*.json")):
        # The kind of file comes first: a pipe would wait for its writer.
        try:
            about = path.stat()
            if not stat.S_ISREG(about.st_mode):
                skipped.append(f"{path.name}: skipped, it is no ordinary file")
            elif _is_profile(path):
                changed[path] = about.st_mtime_ns
        except OSError as error:
            skipped.append(f"{path.name}: skipped, it cannot be read: {error.strerror}")
    if not changed:
        aside = f" ({'; '.join(skipped)})" if skipped else ""
        raise ProfileError(
            f"{folder}: no profile here{aside}; make one with 'autopart profile model.py' "
            "or name one with --profile"
        )
    return NewestProfile(max(changed, key=changed.__getitem__), tuple(skipped))


def profile_hash(profile: Profile) -> str:
    """The hash by which a plan names its profile.

    It covers the profile in version 1's words, and variants in version 3's where there are some. So a version 1 file, and
    the same profile saved in a later version, have one hash, and older plans keep matching. Whole numbers in place of floats do
    not count: a profile made in Python has the hash that its file will have.
    """
    as_in_a_file = msgspec.json.decode(msgspec.json.encode(profile), type=Profile)
    return content_hash(profile_as_1(msgspec.to_builtins(as_in_a_file)))


def _check(profile: Profile, where: str) -> None:
    """Raise ProfileError where the profile contradicts itself."""
    check_graph(profile.graph, where)
    check_variants(profile.graph, profile.variants, where)


def _is_profile(path: Path) -> bool:
    """Whether a file begins as a profile does."""
    with path.open("rb") as file:
        return f'"{FORMAT}"'.encode() in file.read(200)
