"""Other people's profiles in our words, one file for each format.

A module of this room has `load(path) -> Profile`, strict: whatever is malformed is a FileError that
names the file, the line or the place in it, and what was expected there.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from autopart.errors import UsageError
from autopart.profile import Profile

FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "dapple": "autopart.importers.dapple",
        "dnn-partitioning": "autopart.importers.dnn_partitioning",
        "pipedream": "autopart.importers.pipedream",
        "piper": "autopart.importers.piper",
    }
)
"""The formats that can be read, and the module that reads each."""


def import_profile(name: str, path: Path | str) -> Profile:
    """The profile in a file of the format `name`; raises FileError, or UsageError on the name."""
    if name not in FORMATS:
        raise UsageError(f"cannot import '{name}'; known: {', '.join(FORMATS)}")
    return import_module(FORMATS[name]).load(Path(path))
