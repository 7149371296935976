import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def write(tmp_path: Path) -> Callable[[object], Path]:
    """Write a text, or a document as JSON, and return the file."""

    def written(content: object) -> Path:
        path = tmp_path / "net.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return written
