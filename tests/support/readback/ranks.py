"""Runs an export on its processes under the real framework."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from autopart.exporters.targets import export_plan
from autopart.records.plan import Plan
from autopart.records.plan_degrees import num_processes
from tests.support.places import ROOT

LIMIT = 600
"""Seconds until all ranks are ended."""


def run_ranks(script: str, plan: Plan, target: str, folder: Path) -> None:
    """Export the plan into the folder, and run the script there on each process of the plan."""
    for name, text in export_plan(plan, target).files.items():
        (folder / name).write_text(text)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    count = str(num_processes(plan))
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": count}
    common |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    forked = subprocess.Popen(
        [sys.executable, "-m", "tests.support.readback.forked", script, count, str(folder)],
        env={**os.environ, **common},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        words = forked.communicate(timeout=LIMIT)[0]
    finally:
        if forked.poll() is None:
            os.killpg(forked.pid, signal.SIGKILL)  # the ranks too, which share its session
            forked.wait()
    said = [path.read_text()[-2000:] for path in sorted(folder.glob("rank*.txt"))]
    assert forked.returncode == 0, "\n\n".join([words[-2000:], *said])
