"""Built-in profiles: a table, and the document for `--json`."""

from collections.abc import Sequence

import msgspec
from rich.table import Table

from autopart.records.group_variants import GroupVariant
from autopart.records.profile import Profile
from autopart.report.columns import add_number, add_text, new_table


class ListedProfile(msgspec.Struct, frozen=True, kw_only=True):
    """The built-in profiles of one model on one device."""

    name: str
    """Name for `--profile`."""
    model: str
    """Name of the model for `profile` and `run`."""
    device: str
    """The GPU or CPU."""
    method: str
    """How the profiles were made: measured or analytic."""
    dtype: str
    num_params: int
    """Parameters of the model."""
    layers: int
    """Layers of the model."""
    microbatch_sizes: tuple[int, ...]
    """Samples per microbatch, one for each file."""
    tensor_degrees: tuple[int, ...]
    """Tensor degrees that every file has."""
    files: tuple[str, ...]
    """Paths of the files."""


class ProfileList(msgspec.Struct, frozen=True, kw_only=True):
    """The document of `autopart profiles --json`."""

    profiles: tuple[ListedProfile, ...]
    """All built-in profiles, or the named one."""


def listed_profile(name: str, files: Sequence[str], profiles: Sequence[Profile]) -> ListedProfile:
    """One entry, from the files of one model and device and their contents."""
    first = profiles[0]
    degrees = set.intersection(*(_degrees(profile.variants) for profile in profiles))
    return ListedProfile(
        name=name,
        model=first.source.model,
        device=first.device.name,
        method=first.method,
        dtype=first.dtype,
        num_params=first.source.num_params,
        layers=len(first.graph.layers),
        microbatch_sizes=tuple(profile.microbatch_size for profile in profiles),
        tensor_degrees=tuple(sorted(degrees)),
        files=tuple(files),
    )


def _degrees(variants: Sequence[GroupVariant]) -> set[int]:
    return {1, *(variant.group.tensor for variant in variants)}


def _in_short(count: int) -> str:
    """`1.31 B`, or `1.7 M` below a hundredth of it."""
    return f"{count / 1e9:.2f} B" if count >= 1e7 else f"{count / 1e6:.1f} M"


def profile_list_table(listed: ProfileList) -> Table:
    """One row for each model and device."""
    table = new_table("built-in profiles")
    for heading in ("--profile", "dtype"):
        table.add_column(heading, no_wrap=True)
    for heading in ("params", "layers"):
        add_number(table, heading)
    for heading in ("micro-\nbatch", "degrees", "method"):
        add_text(table, heading)
    for one in listed.profiles:
        table.add_row(
            one.name,
            one.dtype,
            _in_short(one.num_params),
            str(one.layers),
            ", ".join(map(str, one.microbatch_sizes)),
            ", ".join(map(str, one.tensor_degrees)),
            one.method,
        )
    return table
