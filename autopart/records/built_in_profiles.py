"""Built-in profiles: the files of profiles/, found by model and device.

A file is named `MODEL-DEVICE-mbN.json`, such as `llama-8b-h100-sxm-mb2.json`. Its name without `-mbN` stands
for all of its microbatch sizes.
"""

import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from autopart.errors import ProfileError

INSTALLED = "share/autopart/profiles/*.json"
"""The files in an installation, as pyproject.toml places them."""


class BuiltIn(NamedTuple):
    """The built-in profiles of one model on one device."""

    name: str
    """Model and device: `llama-8b-h100-sxm`."""
    paths: Mapping[int, Path]
    """The file for each microbatch size."""


def built_in_profiles() -> tuple[BuiltIn, ...]:
    """All built-in profiles, sorted by name; none where the files are not there."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(_files()):
        name, mark, size = path.stem.rpartition("-mb")
        if mark and size.isdecimal():
            found.setdefault(name, {})[int(size)] = path
    return tuple(BuiltIn(name, dict(sorted(paths.items()))) for name, paths in found.items())


def find_built_in(name: str) -> BuiltIn:
    """The built-in profiles that `name` names alone: the whole name or its first words.

    `llama-8b-h100` is enough for `llama-8b-h100-sxm`, and `llama-8b-h100-sxm-mb2` means one size of them. Raises ProfileError
    where no name begins so, or several do.
    """
    known = built_in_profiles()
    sizes = [
        BuiltIn(f"{one.name}-mb{size}", {size: path})
        for one in known
        for size, path in one.paths.items()
    ]
    for candidates in (known, sizes):
        exact = [one for one in candidates if one.name == name]
        begun = [one for one in candidates if one.name.startswith(f"{name}-")]
        found = exact or begun
        if len(found) == 1:
            return found[0]
        if found and candidates is known:
            raise ProfileError(
                f"'{name}' may be {_listed([one.name for one in found])}; give the whole name"
            )
    raise ProfileError(f"there is no built-in profile '{name}'; {_advice(name, known)}")


def profile_files(asked: Path) -> tuple[Path, ...]:
    """The files that `--profile` means: the file itself, or the built-in profiles with that name.

    A file in the working folder wins. Raises ProfileError where there is neither.
    """
    text = str(asked)
    # `os.path.lexists` is false for names that no file can have, where `Path.exists` raises.
    if os.path.lexists(asked) or asked.suffix == ".json" or asked.name != text:
        return (asked,)
    try:
        return tuple(find_built_in(text).paths.values())
    except ProfileError as error:
        raise ProfileError(f"{text}: there is no such file, and {error}") from None


def _files() -> Sequence[Path]:
    """The files of profiles/ beside the package in a clone, else those of the installation."""
    clone = Path(__file__).parents[2] / "profiles"
    if clone.is_dir():
        return [*clone.glob("*.json")]
    try:
        installed = metadata.files("autopart") or []
    except metadata.PackageNotFoundError:
        return ()
    return [Path(str(file.locate())).resolve() for file in installed if file.match(INSTALLED)]


def _advice(name: str, known: Sequence[BuiltIn]) -> str:
    near = get_close_matches(name, [one.name for one in known], n=3, cutoff=0.5)
    lead = f"near names are {_listed(near)}; " if near else ""
    return f"{lead}'autopart profiles' lists them"


def _listed(names: Sequence[str]) -> str:
    return " or ".join(names)
