"""Profiles in other planners' files, imported as profiles: one file here for each format.

Each module in `FORMATS` has `load(path) -> Profile`. It is strict: a malformed file is a FileError
that names the file, the line or the place in it, and the expected content.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from autopart.errors import UsageError
from autopart.records.profile import Profile, check_profile
from autopart.text import known_names

FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "dapple": "autopart.peers.dapple",
        "dnn-partitioning": "autopart.peers.dnn_partitioning.file",
        "pipedream": "autopart.peers.pipedream.file",
        "piper": "autopart.peers.piper.file",
    }
)
"""The formats that can be imported, and the module that reads each."""


def import_profile(name: str, path: Path | str) -> Profile:
    """The profile in a file in the format `name`; raises FileError, or UsageError on the name."""
    if name not in FORMATS:
        raise UsageError(f"cannot import '{name}'; {known_names(name, FORMATS)}")
    profile: Profile = import_module(FORMATS[name]).load(Path(path))
    check_profile(profile, str(path))
    return profile
