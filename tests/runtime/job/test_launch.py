"""Runs as a user starts them, with ranks that are killed, hang or raise."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import msgspec
import pytest

from autopart.errors import ModelError, PlanError, RunError, UsageError
from autopart.records.plan import Plan, save_plan
from autopart.records.run_result import RunResult
from autopart.runtime.engine.failures import Failure
from autopart.runtime.engine.run_settings import RunSettings
from autopart.runtime.job.launch import dead_rank, run_local
from tests.support.runtime.plans import capture, plan_for

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")
FAULTY = "tests/support/models/faulty.py"
MARK = "AUTOPART_TESTS_OF_LAUNCH"
TIMEOUT = 12.0
"""Timeout in seconds when a rank hangs; starting up has ten times as long."""
MEETING = 40.0
"""Timeout in seconds when a rank hangs under torchrun. All ranks must come within it."""
PATIENCE = 300.0
"""Timeout in seconds when no rank hangs; a busy machine must not count as a hang."""
BOUND = 600.0
"""Seconds in which the slowest run must end on a busy machine, start included."""


@cache
def plan(fate: str = "well") -> Plan:
    model = f"{FAULTY}:{fate}"
    return plan_for(model, capture(f"{FAULTY}:well"), [0.34])


@pytest.fixture(autouse=True, scope="module")
def _marked_environment() -> Iterator[None]:
    """Processes that these tests start inherit a mark, to tell them from those of other suites."""
    os.environ[MARK] = str(os.getpid())
    yield
    del os.environ[MARK]


def left_behind() -> list[str]:
    """Command lines of the ranks that these tests have started and that still run."""
    mark = f"{MARK}={os.getpid()}".encode()
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            is_ours = mark in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if is_ours and "rank_process" in text:
            found.append(text)
    return found


def complaint(fate: str, timeout: float = PATIENCE) -> str:
    """The error of a run in which rank 1 meets `fate`; it must end in time and leave no process."""
    begin = time.monotonic()
    with pytest.raises(RunError) as raised:
        run_local(plan_with(fate), RunSettings(model=f"{FAULTY}:{fate}", steps=3, timeout=timeout))
    assert time.monotonic() - begin < BOUND
    assert left_behind() == []
    return str(raised.value)


def plan_with(fate: str) -> Plan:
    """The fate is an argument in the graph, so each fate gives another hash."""
    return plan_for(f"{FAULTY}:{fate}", capture(f"{FAULTY}:{fate}"), [0.34])


@pytest.mark.slow
def test_a_local_run_returns_its_ranks_measurements():
    seen: list[tuple[int, int, str]] = []
    settings = RunSettings(model=f"{FAULTY}:well", steps=3, check=True, timeout=PATIENCE)
    result = run_local(plan(), settings, lambda *at: seen.append(at))
    assert len(result.losses) == 3 and result.check is not None
    assert (result.num_ranks, result.backend, result.device) == (2, "gloo", "cpu")
    assert seen and all(of == 3 for _, of, _ in seen)
    assert msgspec.json.decode(msgspec.json.encode(result), type=RunResult) == result
    assert left_behind() == []


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_with_its_signal_and_action():
    assert complaint("killed") == "rank 1 was killed by SIGKILL on 1F2"


@pytest.mark.slow
def test_a_rank_that_hangs_stops_the_run_and_is_named_with_its_action():
    assert complaint("hanging", TIMEOUT).startswith(
        "rank 1 hangs on 1F2: no rank made progress for "
    )


@pytest.mark.slow
def test_a_rank_that_hangs_with_the_interpreter_s_lock_is_ended_too():
    assert complaint("stuck", TIMEOUT).startswith("rank 1 hangs on 1F2: no rank made progress for ")


@pytest.mark.long  # a rank raises the same under torchrun in a slow test
def test_a_rank_that_raises_is_named_with_its_action_and_the_error():
    assert complaint("raising") == "rank 1 raised ValueError on 1F2: no room left on the device"


@pytest.mark.long
def test_a_rank_that_leaves_is_named_with_its_exit_code():
    assert complaint("leaving") == "rank 1 ended with exit code 3 on 1F2"


@pytest.mark.long
def test_a_rank_that_is_killed_before_the_first_step_is_named_too():
    with pytest.raises(RunError, match="rank 1 was killed by SIGKILL on building the model"):
        run_local(plan(), RunSettings(model=f"{FAULTY}:killed_while_built", steps=1))
    assert left_behind() == []


@pytest.mark.slow
def test_a_model_that_cannot_be_built_on_one_rank_shows_its_own_error():
    with pytest.raises(ModelError, match=r"raised OSError: weights.bin is gone .* \(on rank 1\)"):
        run_local(
            plan(), RunSettings(model=f"{FAULTY}:raising_while_built", steps=1, timeout=PATIENCE)
        )
    assert left_behind() == []


@pytest.mark.long
def test_a_plan_of_another_model_is_refused_before_anything_is_trained():
    with pytest.raises(PlanError, match="which the plan lacks"):
        run_local(plan(), RunSettings(model="zoo:mlp-tiny", steps=1))
    assert left_behind() == []


def guess(rank: int) -> Failure:
    return Failure(rank=rank, message=f"rank {rank} is gone", is_guess=True)


@pytest.mark.parametrize(
    ("claimed", "first", "codes", "blamed"),
    [
        (None, [1], [1, -9], 1),
        (None, [0, 1], [1, -9], 1),
        (guess(1), [1], [1, -9], 1),
        # The launcher has read the guess before it has seen the dead rank.
        (guess(1), [], [1, -9], 1),
        (guess(1), [], [1, 3], 1),
        (guess(1), [0], [1, 1], 0),
        (guess(1), [], [None, 1], None),
        (Failure(rank=1, message="rank 1 raised"), [0, 1], [1, 1], None),
    ],
)
def test_the_dead_rank_is_blamed_whenever_the_launcher_looks(
    claimed: Failure | None, first: list[int], codes: list[int | None], blamed: int | None
):
    assert dead_rank(claimed, first, codes) == blamed


def test_settings_that_cannot_run_are_refused_before_anything_starts():
    with pytest.raises(UsageError, match="0 steps"):
        run_local(plan(), RunSettings(model=FAULTY, steps=0))
    with pytest.raises(
        UsageError, match=r"unknown optimizer 'adam'; did you mean adamw\? known: adamw, "
    ):
        run_local(plan(), RunSettings(model=FAULTY, steps=1, optimizer="adam"))
    with pytest.raises(UsageError, match="a timeout of 0"):
        run_local(plan(), RunSettings(model=FAULTY, steps=1, timeout=0.0))


START = """
import sys
from autopart.runtime.job.launch import run_{how}
from autopart.runtime.engine.failures import Failure
from autopart.runtime.engine.run_settings import RunSettings
model, steps = sys.argv[2], int(sys.argv[3])
settings = RunSettings(model=model, steps=steps, check=True, timeout={timeout})
result = run_{how}(sys.argv[1], settings)
if result is not None:
    sys.stdout.write(f"losses {{len(result.losses)}} check {{result.check.num_parameters}}")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other processes are read from /proc")
def test_ranks_end_by_themselves_when_their_launcher_is_killed(tmp_path: Path):
    save_plan(plan_with("hanging"), tmp_path / "plan.json")
    script = tmp_path / "start.py"
    script.write_text(START.format(how="local", timeout=TIMEOUT))
    launcher = subprocess.Popen(
        [sys.executable, script, tmp_path / "plan.json", f"{FAULTY}:hanging", "3"],
        env={**os.environ, "PYTHONPATH": "."},
    )
    await_(lambda: len(left_behind()) == 2)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    await_(lambda: left_behind() == [])


def await_(condition: Callable[[], bool], seconds: float = BOUND) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, left_behind()
        time.sleep(0.1)


SLOW_TO_TELL = """
import os, sys, time
told = sys.excepthook
def slow(kind, error, trace):
    time.sleep(10)
    told(kind, error, trace)
sys.excepthook = slow
"""
"""A program's beginning that makes each rank tell its error late, as on a busy machine."""


def torchrun(
    tmp_path: Path, of: Plan, model: str, ranks: int, prelude: str = ""
) -> subprocess.CompletedProcess[str]:
    save_plan(of, tmp_path / "plan.json")
    script = tmp_path / "start.py"
    hangs = model.endswith(":hanging")
    script.write_text(prelude + START.format(how="rank", timeout=MEETING if hangs else PATIENCE))
    return subprocess.run(
        [*TORCHRUN, f"--nproc-per-node={ranks}", script, tmp_path / "plan.json", model, "2"],
        env={**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )


@pytest.mark.long  # the command `run` does the same under torchrun in a slow test
def test_ranks_under_torchrun_run_the_plan_and_rank_0_has_the_result(tmp_path: Path):
    done = torchrun(tmp_path, plan(), f"{FAULTY}:well", ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "losses 2 check 6"


@pytest.mark.long
def test_ranks_started_by_hand_need_no_torchrun(tmp_path: Path):
    save_plan(plan(), tmp_path / "plan.json")
    script = tmp_path / "start.py"
    script.write_text(START.format(how="rank", timeout=PATIENCE))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, script, tmp_path / "plan.json", f"{FAULTY}:well", "2"],
            env={**os.environ, "PYTHONPATH": ".", **world, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=BOUND)[0] for rank in ranks]
    assert said == ["losses 2 check 6", ""]
    assert [rank.returncode for rank in ranks] == [0, 0]


@pytest.mark.slow
def test_under_torchrun_one_rank_prints_the_error_and_all_ranks_stop(tmp_path: Path):
    done = torchrun(
        tmp_path, plan_with("raising"), f"{FAULTY}:raising", ranks=2, prelude=SLOW_TO_TELL
    )
    assert done.returncode == 1
    said = "RunError: rank 1 raised ValueError on 1F2: no room left on the device"
    assert done.stderr.count(said) == 1


@pytest.mark.slow
def test_under_torchrun_a_hang_is_ended_and_named(tmp_path: Path):
    done = torchrun(tmp_path, plan_with("hanging"), f"{FAULTY}:hanging", ranks=2)
    assert done.returncode == 1
    assert done.stderr.count("error: rank 1 hangs on 1F2: no rank made progress for ") == 1


@pytest.mark.slow
def test_another_number_of_ranks_than_the_plan_s_is_refused_once(tmp_path: Path):
    done = torchrun(tmp_path, plan(), f"{FAULTY}:well", ranks=3, prelude=SLOW_TO_TELL)
    assert done.returncode == 1
    assert done.stderr.count("PlanError: the plan is for 2 ranks, but 3 were started") == 1
