"""One check of a plan, and its result."""

from typing import NamedTuple


class Check(NamedTuple):
    """One question that `verify` asks about a plan, and its answer."""

    name: str
    """The question in a few words."""
    passed: bool
    """Whether the plan passes the check."""
    detail: str
    """The figures that were compared, or the first contradiction that was found."""
