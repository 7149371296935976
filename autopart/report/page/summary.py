"""The document that `autopart report --json` prints."""

import msgspec


class ReportSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A page that was written."""

    plan: str
    """Plan file."""
    page: str
    """The page's file."""
    num_bytes: int
    """Bytes of the page."""
    sections: tuple[str, ...]
    """The sections of the page by their anchors."""
    notes: tuple[str, ...]
    """Figures that are left out, with the reason."""
