"""Starts a plan's ranks on this machine, watches them, and returns their measurements.

The launcher hosts the key-value store through which ranks meet. If one rank fails, other ranks end
by themselves; those left after `GRACE_SECONDS` are killed. If the launcher is interrupted, it kills
all ranks. If the launcher itself is killed, its pipe to the ranks breaks, and they end.
"""

# pyright: reportPrivateImportUsage=false

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Unpack

import msgspec
from torch import distributed

from autopart.records.plan import Plan, load_plan, save_plan
from autopart.records.plan_degrees import num_processes
from autopart.records.run_result import RunResult
from autopart.runtime.engine.asynchronous_rules import rules_of
from autopart.runtime.engine.failures import Failure, as_error
from autopart.runtime.engine.plan_match import check_can_run
from autopart.runtime.engine.run_settings import (
    RunKeywords,
    RunSettings,
    check_clipping,
    check_compiler_fits,
    check_settings,
)
from autopart.runtime.job.meeting import ANSWER_SECONDS
from autopart.runtime.job.rank import run_as_rank
from autopart.runtime.job.saved_state import check_folder_to_save
from autopart.runtime.job.status_board import (
    Note,
    StallDetector,
    StatusBoard,
    describe,
    job_store,
    stuck_failure,
)
from autopart.runtime.job.training import Report
from autopart.runtime.job.world import is_rank, read_world
from autopart.stopping.signals import held_signals, temporary_folder

GRACE_SECONDS = 4.0
"""Seconds that ranks may take to end by themselves after one has failed."""

_POLL_SECONDS = 0.05
_LOOK_SECONDS = 0.5
_HOST = "127.0.0.1"


def run_plan(
    plan: Plan | Path | str,
    model: str,
    *,
    report: Report | None = None,
    **keywords: Unpack[RunKeywords],
) -> RunResult | None:
    """Run a plan: as a rank if torchrun started this process, else on ranks started here.

    The keywords are fields of `autopart.runtime.engine.run_settings.RunSettings`, which explains
    each; `steps` is required. `report` is told about the progress, on rank 0 and on the launcher.

    Returns the result, or None on ranks other than 0. Raises as `run_rank` and `run_local` do.
    """
    return run_with_settings(plan, RunSettings(model=model, **keywords), report)


def run_with_settings(
    plan: Plan | Path | str, settings: RunSettings, report: Report | None = None
) -> RunResult | None:
    """Run a plan as `run_plan` does, with one record of settings."""
    start = run_rank if is_rank(os.environ) else run_local
    return start(plan, settings, report)


def run_rank(
    plan: Plan | Path | str, settings: RunSettings, report: Report | None = None
) -> RunResult | None:
    """Run a plan as the rank that torchrun's environment names.

    Returns the result on rank 0, None on other ranks. If a run fails, one rank raises the error and
    other ranks raise SystemExit(1).
    """
    check_settings(settings)
    whole = _loaded(plan, settings)
    return run_as_rank(whole, settings, read_world(os.environ), report)


def run_local(
    plan: Plan | Path | str, settings: RunSettings, report: Report | None = None
) -> RunResult:
    """Run a plan on this machine, with one process per rank.

    Raises RunError if a rank dies, hangs, or differs from the plain model; the error names the rank
    and its action. Raises FileError, PlanError or ModelError for a plan or a model that cannot be
    loaded. No process is left behind.
    """
    check_settings(settings)
    whole = _loaded(plan, settings)
    with temporary_folder("autopart-run-") as folder:
        job = _Job(whole, settings, folder)
        try:
            job.start()
            return job.wait(report)
        finally:
            with held_signals():
                job.kill()


def _loaded(plan: Plan | Path | str, settings: RunSettings) -> Plan:
    if not isinstance(plan, Plan):
        plan = load_plan(plan)
    check_can_run(plan, settings.backend)
    check_clipping(plan, settings)
    check_compiler_fits(plan, settings)
    if settings.asynchronous is not None:
        rules_of(plan, settings.asynchronous)
    if settings.save is not None:
        check_folder_to_save(settings.save)
    return plan


class _Job:
    """One run's processes."""

    def __init__(self, plan: Plan, settings: RunSettings, folder: Path) -> None:
        self._num_ranks = num_processes(plan)
        self._settings = settings
        self._folder = folder
        self._plan_file = folder / "plan.json"
        self._result_file = folder / "result.json"
        save_plan(plan, self._plan_file)
        self._store = host_store()
        self._status_board = StatusBoard(job_store(self._store, "0"), None, self._num_ranks)
        self._stalls = StallDetector(settings.timeout + GRACE_SECONDS, time.monotonic())
        self._ranks: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start all ranks, with their output in files."""
        options = msgspec.json.encode(self._settings).decode()
        module = ["-m", "autopart.runtime.job.rank_process"]
        command = [sys.executable, *module, self._plan_file, options, self._result_file]
        for rank in range(self._num_ranks):
            # No signal arrives between a rank's start and its entry in the list.
            with held_signals(), self._output(rank).open("wb") as output:
                self._ranks.append(
                    subprocess.Popen(
                        command,
                        env=rank_environment(rank, self._num_ranks, self._store.port)
                        | {"TMPDIR": str(self._folder)},
                        stdin=subprocess.PIPE,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    def wait(self, report: Report | None) -> RunResult:
        """The result, once all ranks have ended well; raises the error if a rank fails."""
        looked = time.monotonic()
        while True:
            # Step 1: has a rank died, or claimed a failure?
            codes = [process.poll() for process in self._ranks]
            notes = self._status_board.notes()
            dead = [rank for rank, code in enumerate(codes) if _is_death(code, notes[rank])]
            if dead or self._status_board.failure() is not None:
                raise as_error(self._blame(dead))
            # Step 2: have all ranks ended well?
            if all(code == 0 for code in codes):
                return msgspec.json.decode(self._result_file.read_bytes(), type=RunResult)
            # Step 3: now and then, look for a stall and report the progress.
            if time.monotonic() - looked > _LOOK_SECONDS:
                looked = time.monotonic()
                stuck = self._stalls.look(notes, looked)
                if stuck is not None:
                    raise as_error(stuck_failure(stuck))
                if report is not None and notes[0] is not None:
                    report(notes[0].step, self._settings.steps, _progress(notes[0]))
            time.sleep(_POLL_SECONDS)

    def kill(self) -> None:
        """Kill the ranks that still run, and all processes that they have started."""
        for process in self._ranks:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        for process in self._ranks:
            process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def _blame(self, first: list[int]) -> Failure:
        """The failure to report; `first` are the ranks that were found dead first."""
        # Step 1: give the other ranks time to end, and to claim a failure.
        until = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < until and any(p.poll() is None for p in self._ranks):
            time.sleep(_POLL_SECONDS)
        # Step 2: a claimed failure wins, unless it is a guess and a dead rank is known.
        claimed = self._status_board.failure()
        rank = dead_rank(claimed, first, [process.returncode for process in self._ranks])
        if rank is None:
            assert claimed is not None, "a rank is dead, or a failure is claimed"
            return claimed
        where = describe(self._status_board.notes()[rank])
        how = _cause_of_death(self._ranks[rank].returncode)
        said = self._last_line(rank)
        text = f"rank {rank} {how} on {where}" + (f"; it said last: {said}" if said else "")
        return Failure(rank=rank, message=text)

    def _output(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.txt"

    def _last_line(self, rank: int) -> str:
        lines = self._output(rank).read_text(errors="replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def dead_rank(
    claimed: Failure | None, first: Sequence[int], codes: Sequence[int | None]
) -> int | None:
    """The dead rank to blame; None where the `claimed` failure stands.

    `first` are the ranks that were found dead first, `codes` the exit codes by rank. Ranks that stop
    because of another rank end with 1.
    """
    if claimed is not None and not claimed.is_guess:
        return None
    # A rank may die after the launcher has looked, and another may guess so before it looks again.
    strange = [rank for rank, code in enumerate(codes) if code not in (None, 0, 1)]
    suspects = [*first] or strange
    if not suspects:
        return None
    guessed = None if claimed is None else claimed.rank
    if guessed in suspects:
        return guessed
    return min(suspects, key=lambda rank: rank not in strange)


def host_store() -> distributed.TCPStore:
    """A key-value store on a free port of this machine, through which ranks started here meet."""
    return distributed.TCPStore(
        _HOST,
        0,
        None,
        is_master=True,
        timeout=timedelta(seconds=ANSWER_SECONDS),
        wait_for_workers=False,
    )


def rank_environment(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """Environment variables for one of `num_ranks` ranks on this machine, as torchrun would set
    them.

    The process that starts the rank hosts the store at `port`.
    """
    mine = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": _HOST,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    usual = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    if "lo" in {name for _, name in socket.if_nameindex()}:
        usual["GLOO_SOCKET_IFNAME"] = "lo"
    return {**usual, **os.environ, **mine}


def _progress(note: Note) -> str:
    return f"{describe(note)}, {note.speed:.3g} samples/s" if note.speed else describe(note)


def _is_death(code: int | None, note: Note | None) -> bool:
    """Whether a rank has ended without finishing its run."""
    return code is not None and (code != 0 or note is None or note.state != "done")


def _cause_of_death(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
