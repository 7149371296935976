"""Paths to folders in this repository."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
SCHEMAS = ROOT / "docs" / "schemas"
MODELS = Path(__file__).parent / "models"
"""Models that tests profile, capture and run."""
