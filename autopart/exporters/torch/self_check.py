"""Runs the check of an exported `pipeline.py` in its own process, as its user would."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from autopart.errors import RunError
from autopart.stopping.signals import temporary_folder


def check_export(pipeline: Path, model: Path) -> str:
    """Compare one step of the exported pipeline with the plain model, on this machine's CPU.

    `model` is a model file. Returns the check's sentence. Raises RunError where something differs,
    or where the check cannot run. A signal that ends this process ends the check's processes too.
    """
    with (
        temporary_folder("autopart-check-") as folder,
        subprocess.Popen(
            [sys.executable, str(pipeline), "--check", str(model)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(folder)},
            start_new_session=True,
        ) as process,
    ):
        try:
            said, complaint = process.communicate()
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    failed = process.returncode != 0
    lines = (complaint if failed else said).strip().splitlines()
    last = lines[-1] if lines else f"the check ended with exit code {process.returncode}"
    if failed:
        raise RunError(f"{pipeline}: {last.removeprefix('error: ')}")
    return last
