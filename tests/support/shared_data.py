"""Public profiles and published answers, which are not in the repository."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.places import ROOT

DATA = Path(os.environ.get("AUTOPART_DATA", ROOT.parent / "shared" / "data"))

CASES = DATA.parent / "cases"
"""Small files of wrong claims, with a README that says what each shows."""

needs_cases = pytest.mark.skipif(
    not (CASES / "README.md").exists(), reason=f"no shared cases in {CASES}"
)

needs_data = pytest.mark.skipif(
    not (DATA / "baselines.json").exists(),
    reason=f"no public profiles in {DATA}; AUTOPART_DATA names another folder",
)


def published(planner: str) -> list[dict[str, Any]]:
    """A planner's published answers; none where the data is missing."""
    try:
        return json.loads((DATA / "baselines.json").read_text())[planner]
    except FileNotFoundError:
        return []
