"""A measured (or analytic) profile of one model, and its file.

The profile holds everything that a solver needs to know of the model; it holds nothing that is
executed. How it was made, and how far the sum of its layers is from the whole model, stand in it.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from autopart.errors import ProfileError
from autopart.files import content_hash, encode, read_file, write_file
from autopart.graph import LayerGraph, check_graph
from autopart.units import Bytes, Count, PositiveCount, Seconds

FORMAT = "autopart-profile"
VERSION = 1

MAX_SPREAD = 0.10
"""Interquartile range over median of the step, above which more rounds are measured."""


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the times come from."""

    kind: Literal["cpu", "cuda", "meta"]
    name: str
    """The device's own name, or the name of the GPU whose roofline was used."""
    threads: Count | None = None
    """Compute threads during the measurement, on a CPU."""
    memory_bytes: Bytes | None = None


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which model was profiled."""

    model: str
    """What the user typed: `model.py`, `package.module:function`, `zoo:gpt2-tiny`."""
    graph_hash: str
    """Of the captured computation: names, operations and shapes, not the weights."""
    num_params: Count
    software: dict[str, str]
    """Versions of python, torch, autopart and what else the times depend on."""


class WholeModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole model, run as one, beside the sum of the layers: how far the profile is off."""

    forward_time: Seconds
    backward_time: Seconds
    layers_forward_time: Seconds
    layers_backward_time: Seconds
    stash_bytes: Bytes
    """Bytes that autograd really holds after a forward of the whole model, inputs excluded."""
    layers_stash_bytes: Bytes


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one model costs, layer by layer, for one microbatch on one device."""

    format: Literal["autopart-profile"] = FORMAT
    version: Literal[1] = VERSION
    method: Literal["measured", "analytic", "imported"]
    source: Source
    device: Device
    dtype: str
    microbatch_size: PositiveCount
    warmup: Count = 0
    repeats: Count = 0
    graph: LayerGraph
    whole: WholeModel | None = None
    warnings: tuple[str, ...] = ()
    created: Annotated[str, msgspec.Meta(description="ISO 8601, UTC")] = ""


def time_error(whole: WholeModel) -> float:
    """Sum of the layers' forward and backward over the whole model's, minus 1."""
    layers = whole.layers_forward_time + whole.layers_backward_time
    return layers / (whole.forward_time + whole.backward_time) - 1


def stash_error(whole: WholeModel) -> float:
    """The layers' stash over what autograd holds for the whole model, minus 1."""
    return whole.layers_stash_bytes / whole.stash_bytes - 1 if whole.stash_bytes else 0.0


def load_profile(path: Path | str) -> Profile:
    """Read a profile file strictly; raises FileError or ProfileError."""
    profile = read_file(Path(path), Profile, FORMAT, VERSION)
    check_graph(profile.graph, where=str(path))
    return profile


def save_profile(profile: Profile, path: Path | str) -> None:
    """Write a profile file whole or not at all."""
    check_graph(profile.graph, where=str(path))
    write_file(Path(path), encode(profile))


def newest_profile(folder: Path) -> Path:
    """The profile file changed last in `folder`; raises ProfileError where there is none."""
    found = [p for p in folder.glob("*.json") if _is_profile(p)]
    if not found:
        raise ProfileError(
            f"{folder}: no profile here; make one with 'autopart profile model.py' "
            "or name one with --profile"
        )
    return max(found, key=lambda p: p.stat().st_mtime_ns)


def profile_hash(profile: Profile) -> str:
    """What a plan carries to say which profile it was made from."""
    return content_hash(profile)


def _is_profile(path: Path) -> bool:
    with path.open("rb") as file:
        return f'"{FORMAT}"'.encode() in file.read(200)
