"""What an export hands over."""

from collections.abc import Mapping
from typing import NamedTuple


class Exported(NamedTuple):
    """A plan in the words of a framework."""

    files: Mapping[str, str]
    """Their texts by name; each opens with a mark that autopart wrote it."""
    notes: tuple[str, ...] = ()
    """What the files cannot say and the user must see to."""
