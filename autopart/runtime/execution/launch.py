"""Start the ranks of a plan on this machine, watch over them, and bring back what they measured.

The launcher hosts the key-value store through which the ranks meet. When a rank fails, the others
end themselves; whoever is left after `GRACE_SECONDS` is killed, and so are all when the launcher
itself is interrupted. If it is killed outright, the pipe from it breaks, and the ranks end.
"""

# pyright: reportPrivateImportUsage=false

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import msgspec
from torch import distributed

from autopart.plan import Plan, load_plan, num_ranks, save_plan
from autopart.run_result import RunResult
from autopart.runtime.execution.asynchronous import way_of
from autopart.runtime.execution.board import (
    Board,
    Note,
    Progress,
    describe,
    job_store,
    stuck_failure,
)
from autopart.runtime.execution.faults import Failure, as_error
from autopart.runtime.execution.plan_match import Backend, check_can_run
from autopart.runtime.execution.rank import CONNECT_SECONDS, is_rank, read_world, run_as_rank
from autopart.runtime.execution.run_settings import RunSettings, check_settings
from autopart.runtime.execution.training import Report

GRACE_SECONDS = 4.0
"""How long ranks may take to end by themselves after one has failed."""

_POLL_SECONDS = 0.05
_LOOK_SECONDS = 0.5
_HOST = "127.0.0.1"


def run_plan(
    plan: Plan | Path | str,
    model: str,
    *,
    steps: int,
    check: bool = False,
    optimizer: str | None = None,
    lr: float | None = None,
    timeout: float = 60.0,
    device: str | None = None,
    seed: int = 0,
    backend: Backend = "autopart",
    autocast: bool = False,
    asynchronous: str | None = None,
    report: Report | None = None,
) -> RunResult | None:
    """Run a plan: as a rank where torchrun started this process, else on ranks spawned here.

    The options are those of `RunSettings`. `report` is told of the progress where the ranks are
    spawned here, and on rank 0. Gives the result, or None on a rank other than 0.
    """
    settings = RunSettings(
        model=model,
        steps=steps,
        check=check,
        optimizer=optimizer,
        lr=lr,
        timeout=timeout,
        device=device,
        seed=seed,
        backend=backend,
        autocast=autocast,
        asynchronous=asynchronous,
    )
    return run_as_told(plan, settings, report)


def run_as_told(
    plan: Plan | Path | str, settings: RunSettings, report: Report | None = None
) -> RunResult | None:
    """`run_plan` with its options in one piece."""
    start = run_rank if is_rank(os.environ) else run_local
    return start(plan, settings, report)


def run_rank(
    plan: Plan | Path | str, settings: RunSettings, report: Report | None = None
) -> RunResult | None:
    """Run a plan as the rank that the environment names (torchrun): the result on rank 0, None on
    the others. When a run fails, one rank raises what there is to say, the others SystemExit(1).
    """
    check_settings(settings)
    whole = _loaded(plan, settings)
    return run_as_rank(whole, settings, read_world(os.environ), report)


def run_local(
    plan: Plan | Path | str, settings: RunSettings, report: Report | None = None
) -> RunResult:
    """Run a plan on as many processes of this machine as it has ranks.

    Raises RunError where a rank dies, hangs or disagrees with the plain model, naming it and what
    it was at, and the errors of loading a plan or a model; no process is left behind.
    """
    check_settings(settings)
    whole = _loaded(plan, settings)
    with tempfile.TemporaryDirectory(prefix="autopart-run-") as folder:
        job = _Job(whole, settings, Path(folder))
        try:
            job.start()
            return job.wait(report)
        finally:
            job.kill()


def _loaded(plan: Plan | Path | str, settings: RunSettings) -> Plan:
    if not isinstance(plan, Plan):
        plan = load_plan(plan)
    check_can_run(plan, settings.backend)
    if settings.asynchronous is not None:
        way_of(plan, settings.asynchronous)
    return plan


class _Job:
    """The processes of one run."""

    def __init__(self, plan: Plan, settings: RunSettings, folder: Path) -> None:
        self._num_ranks = num_ranks(plan)
        self._settings = settings
        self._folder = folder
        self._plan_file = folder / "plan.json"
        self._result_file = folder / "result.json"
        save_plan(plan, self._plan_file)
        self._store = host_store()
        self._board = Board(job_store(self._store, "0"), None, self._num_ranks)
        self._progress = Progress(settings.timeout + GRACE_SECONDS, time.monotonic())
        self._ranks: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start every rank, its output going to a file."""
        options = msgspec.json.encode(self._settings).decode()
        module = ["-m", "autopart.runtime.execution.rank_process"]
        command = [sys.executable, *module, self._plan_file, options, self._result_file]
        for rank in range(self._num_ranks):
            with self._output(rank).open("wb") as output:
                self._ranks.append(
                    subprocess.Popen(
                        command,
                        env=rank_environment(rank, self._num_ranks, self._store.port),
                        stdin=subprocess.PIPE,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    def wait(self, report: Report | None) -> RunResult:
        """The result, once all ranks have ended well; raises what the failing one has to say."""
        looked = time.monotonic()
        while True:
            codes = [process.poll() for process in self._ranks]
            notes = self._board.notes()
            dead = [rank for rank, code in enumerate(codes) if _is_death(code, notes[rank])]
            if dead or self._board.failure() is not None:
                raise as_error(self._blame(dead))
            if all(code == 0 for code in codes):
                return msgspec.json.decode(self._result_file.read_bytes(), type=RunResult)
            if time.monotonic() - looked > _LOOK_SECONDS:
                looked = time.monotonic()
                stuck = self._progress.look(notes, looked)
                if stuck is not None:
                    raise as_error(stuck_failure(stuck))
                if report is not None and notes[0] is not None:
                    report(notes[0].step, self._settings.steps, _progress(notes[0]))
            time.sleep(_POLL_SECONDS)

    def kill(self) -> None:
        """End what still runs, with whatever it has started itself."""
        for process in self._ranks:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        for process in self._ranks:
            process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def _blame(self, first: list[int]) -> Failure:
        """Why the run failed; `first` are the ranks that were seen dead before all others."""
        until = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < until and any(p.poll() is None for p in self._ranks):
            time.sleep(_POLL_SECONDS)
        claimed = self._board.failure()
        if claimed is not None and not (claimed.is_guess and first):
            return claimed
        rank = claimed.rank if claimed is not None else first[0]
        if rank not in first:  # The guess came from a rank that itself ended in a usual way.
            rank = min(first, key=lambda r: self._ranks[r].returncode == 1)
        where = describe(self._board.notes()[rank])
        how = _cause_of_death(self._ranks[rank].returncode)
        said = self._last_line(rank)
        text = f"rank {rank} {how} on {where}" + (f"; it said last: {said}" if said else "")
        return Failure(rank=rank, message=text)

    def _output(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.txt"

    def _last_line(self, rank: int) -> str:
        lines = self._output(rank).read_text(errors="replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def host_store() -> distributed.TCPStore:
    """A store on a free port of this machine, through which ranks that are started here meet."""
    return distributed.TCPStore(
        _HOST,
        0,
        None,
        is_master=True,
        timeout=timedelta(seconds=CONNECT_SECONDS),
        wait_for_workers=False,
    )


def rank_environment(rank: int, num_ranks: int, port: int) -> Mapping[str, str]:
    """What torchrun would set for one of `num_ranks` ranks of this machine, whose starter hosts the
    store at `port`."""
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
    """Whether a rank has ended otherwise than by finishing its run."""
    return code is not None and (code != 0 or note is None or note.state != "done")


def _cause_of_death(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
