"""The result when a plan is exported."""

from collections.abc import Mapping
from typing import NamedTuple


class Exported(NamedTuple):
    """The files and notes for one framework."""

    files: Mapping[str, str]
    """The text for each file name. Each text opens with a mark that autopart wrote it."""
    notes: tuple[str, ...] = ()
    """Facts that the files cannot express, for the user to act on."""
