"""Where the public profiles and the published answers are, which the repository does not hold."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

DATA = Path(os.environ.get("AUTOPART_DATA", Path(__file__).parents[2] / "shared" / "data"))

needs_data = pytest.mark.skipif(
    not (DATA / "baselines.json").exists(),
    reason=f"no public profiles in {DATA}; AUTOPART_DATA names another folder",
)


def published(planner: str) -> list[dict[str, Any]]:
    """What a planner answered; nothing where the data is not there."""
    try:
        return json.loads((DATA / "baselines.json").read_text())[planner]
    except FileNotFoundError:
        return []
