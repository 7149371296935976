"""Runs the check of an exported `pipeline.py` in its own process, as its user would."""

import subprocess
import sys
from pathlib import Path

from autopart.errors import RunError


def check_export(pipeline: Path, model: Path) -> str:
    """Compare one step of the exported pipeline with the plain model, on this machine's CPU.

    `model` is a model file. Returns the check's sentence. Raises RunError where something differs,
    or where the check cannot run.
    """
    with subprocess.Popen(
        [sys.executable, str(pipeline), "--check", str(model)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        said, complaint = process.communicate()
    failed = process.returncode != 0
    lines = (complaint if failed else said).strip().splitlines()
    last = lines[-1] if lines else f"the check ended with exit code {process.returncode}"
    if failed:
        raise RunError(f"{pipeline}: {last.removeprefix('error: ')}")
    return last
