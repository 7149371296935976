"""A layout that the search has not closed."""

from typing import NamedTuple

from autopart.records.layouts import Layout


class OpenLayout(NamedTuple):
    """A layout, and seconds that no partition in it can beat."""

    bound: float
    layout: Layout
