"""Runs an export on two processes under the real framework."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from autopart.exporters.targets import export_plan
from autopart.records.plan import Plan
from tests.support.places import ROOT


def run_ranks(script: str, plan: Plan, target: str, folder: Path) -> None:
    """Export the plan into the folder, and run the script on two ranks. They write their results there."""
    for name, text in export_plan(plan, target).files.items():
        (folder / name).write_text(text)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    common |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(script)), str(folder)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=200)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    for process, words in zip(ranks, said, strict=True):
        assert process.returncode == 0, words[-3000:]
