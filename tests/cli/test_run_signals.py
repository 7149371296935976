"""Signals during a run: one line, the shell's exit code, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autopart.records.plan import save_plan
from tests.support.places import ROOT
from tests.support.runtime.plans import capture, plan_for

FAULTY = "tests/support/models/faulty.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
BOUND = 600.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="other processes are read from /proc"),
]


class Started:
    """`autopart run` with a rank that hangs, and all processes that it starts."""

    def __init__(self, folder: Path, *command: str, options: tuple[str, ...] = ()) -> None:
        model = f"{FAULTY}:hanging"
        plan = plan_for(model, capture(model), [0.34])
        save_plan(plan, folder / "plan.json")
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self._mark = f"AUTOPART_TESTS_OF_SIGNALS={folder}"
        name, value = self._mark.split("=")
        self._errors = folder / "stderr.txt"
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, *command, "-m", "autopart", "run", str(folder / "plan.json")),
                    *(model, "--timeout", "600", *options),
                ],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=os.environ
                | {"AUTOPART_TESTS_HANGING": str(folder / "hanging")}
                | {name: value, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    def processes(self) -> list[str]:
        """Command lines of all processes that still run."""
        found: list[str] = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return [line for line in found if line]

    def ranks_hang(self) -> bool:
        """Whether rank 1 hangs. It writes a file then."""
        return (self.temporary.parent / "hanging").exists()

    def ended(self) -> tuple[int, str]:
        """Exit code and stderr; nothing is left behind."""
        code = self.process.wait(BOUND)
        await_(lambda: not self.processes())
        left = [path.name for path in self.temporary.iterdir() if "autopart" in path.name]
        assert left == []
        return code, self._errors.read_text()


def await_(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGINT, 130, "error: stopped from the keyboard"),
        pytest.param(signal.SIGTERM, 143, "error: stopped by SIGTERM", marks=pytest.mark.long),
        pytest.param(signal.SIGHUP, 129, "error: stopped by SIGHUP", marks=pytest.mark.long),
    ],
)
def test_a_signal_ends_a_local_run_in_one_line(
    tmp_path: Path, number: int, code: int, line: str
) -> None:
    started = Started(tmp_path, options=("--local",))
    await_(started.ranks_hang)
    started.process.send_signal(number)
    assert started.ended() == (code, f"{line}\n")


def test_ctrl_c_on_torchrun_ends_ranks_that_wait_inside_torch(tmp_path: Path) -> None:
    """torchrun passes Ctrl-C on to its ranks. The first of them says so, in one line."""
    started = Started(tmp_path, *TORCHRUN)
    await_(started.ranks_hang)
    started.process.send_signal(signal.SIGINT)
    _, said = started.ended()
    ours = [line for line in said.splitlines() if line.startswith("error: ")]
    assert ours == ["error: stopped from the keyboard"]
    assert "forcefully exiting" not in said
