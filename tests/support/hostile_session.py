"""Runs hostile command lines in this process, and says what is wrong with an outcome."""

import contextlib
import hashlib
import io
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from autopart.cli.main import exit_code
from autopart.records.cluster import save_cluster
from autopart.records.plan import save_plan
from autopart.records.profile import save_profile
from autopart.text import LONGEST_CLAUSE
from tests.support.hostile_names import OBEYED
from tests.support.samples import sample_cluster, sample_plan, sample_profile
from tests.support.small_model_file import MODEL

MOST_SECONDS = 10.0
"""Seconds of this process's processor that one line may take."""
HANGS = 600.0
"""Seconds after which a line hangs: it waits for something, such as a pipe."""
CODES = range(5)
"""The documented exit codes, beside those of signals."""

TEXTS = {
    "model.py": MODEL,
    "syntax.py": "def build_model(:\n",
    "raising.py": "raise ValueError('two\\nlines')\n",
    "exiting.py": "import sys\nsys.exit(0)\n",
    "text.txt": "not ours\n",
    "empty.json": "",
    "broken.json": '{"format": "autopart-plan", "version": 3, "origin": {',
    "wrong.json": '{"format": "other", "version": 1}',
    "graph.txt": (
        "node1 -- Input0 -- forward_compute_time=0.000, backward_compute_time=0.000, "
        "activation_size=0.0, parameter_size=0.000\n"
        "node2 -- Linear -- forward_compute_time=1.000, backward_compute_time=2.000, "
        "activation_size=100.0, parameter_size=100.000\n"
        "node3 -- Linear -- forward_compute_time=1.000, backward_compute_time=2.000, "
        "activation_size=100.0, parameter_size=100.000\n"
        "\tnode1 -- node2\n\tnode2 -- node3\n"
    ),
}


def make_folder(folder: Path) -> None:
    """Write the files that the hostile lines name into `folder`."""
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    save_profile(sample_profile(), folder / "profile.json")
    save_plan(sample_plan(), folder / "plan.json")
    save_cluster(sample_cluster(), folder / "cluster.json")
    (folder / "binary.json").write_bytes(bytes(range(256)))
    (folder / "folder").mkdir()
    (folder / "dangling.json").symlink_to("nowhere.json")
    os.mkfifo(folder / "pipe.json")


class Told(NamedTuple):
    """The outcome of one line."""

    code: int
    out: str
    err: str


class Overdue(BaseException):
    """A line took too long."""


@contextlib.contextmanager
def time_limits() -> Generator[None]:
    """Raise Overdue where the work inside takes too much processor time, or waits too long."""

    def late(number: int, _frame: FrameType | None) -> None:
        raise Overdue("hangs" if number == signal.SIGALRM else "computes too long")

    timers = (
        (signal.SIGPROF, signal.ITIMER_PROF, MOST_SECONDS),
        (signal.SIGALRM, signal.ITIMER_REAL, HANGS),
    )
    before = [(number, signal.signal(number, late)) for number, _, _ in timers]
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for _, timer, _ in timers:
            signal.setitimer(timer, 0.0)
        for number, handler in before:
            signal.signal(number, handler)


def told(line: Sequence[str]) -> Told:
    """Run one command line in this process and this folder."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), time_limits():
        code = exit_code(line)
    return Told(code, out.getvalue(), err.getvalue())


def fault_of(line: Sequence[str], run: Callable[[Sequence[str]], Told] = told) -> str | None:
    """What is wrong with the outcome of one line; None where nothing is."""
    try:
        outcome = run(line)
    except Overdue as late:
        return f"{late}"
    except BaseException as error:
        return f"raises {type(error).__name__}: {error}"
    if outcome.code not in CODES:
        return f"exit code {outcome.code}"
    if OBEYED.search(outcome.err) or OBEYED.search(outcome.out):
        return "sends control characters"
    if outcome.code == 0:
        return "is cut short" if "Traceback" in outcome.err else None
    said = [text for text in outcome.err.splitlines() if not text.startswith("warning: ")]
    if len(said) != 1 or not said[0].startswith("error: "):
        return f"exit code {outcome.code} with {len(said)} lines: {outcome.err[:300]!r}"
    clause = said[0].removeprefix("error: ").partition("; ")[0]
    if not clause.strip() or len(clause) > LONGEST_CLAUSE:
        return f"a reason of {len(clause)} characters: {clause[:80]!r}"
    return None


class Session(NamedTuple):
    """The outcomes of many lines."""

    lines: int
    codes: Counter[int]
    """Lines for each exit code."""
    faults: list[str]


def run_lines(lines: Iterable[Sequence[str]], folder: Path) -> Session:
    """Run lines in `folder`, which `make_folder` has filled. Files of the folder must stay."""
    codes: Counter[int] = Counter()
    faults: list[str] = []
    names = {path.name for path in folder.iterdir()}
    before = _contents(folder)
    number = 0

    def run(line: Sequence[str]) -> Told:
        outcome = told(line)
        codes[outcome.code] += 1
        return outcome

    for line in lines:
        number += 1
        fault = fault_of(line, run)
        if fault is None and _contents(folder) != before:
            fault = "changes a file that it was not to write"
        if fault is not None:
            faults.append(f"{' '.join(word[:60] for word in line)!r}: {fault}")
        for path in folder.iterdir():
            if path.name not in names:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return Session(number, codes, faults)


def _contents(folder: Path) -> dict[str, str]:
    """A hash of each regular file that `make_folder` wrote."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file() and (path.name in TEXTS or path.name in ("plan.json", "profile.json", "cluster.json"))
    }  # fmt: skip
