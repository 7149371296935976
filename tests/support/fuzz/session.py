"""A session of the fuzzer: seeded inputs, and the outcome of each."""

import contextlib
import gc
import io
import json
import random
import re
import resource
import shutil
import signal
import time
import warnings
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

from autopart.cli.main import exit_code
from autopart.errors import AutopartError
from tests.support.fuzz.formats import FORMATS, Format, good_files
from tests.support.fuzz.mutants import mutant
from tests.support.fuzz.witness import fault_of

MOST_SECONDS = 10.0
"""CPU seconds for one input."""
MOST_BYTES = 2 << 30
"""Address space for one input, beyond the process's own."""
VERB_EVERY = 20
"""One accepted input in so many goes through a whole command line; one refused in ten times as many."""
FAULTS = ("escaped", "wrong", "slow", "large")
"""Outcomes that must not be."""
EXITS = {0, 1, 2, 3, 4, 5}
"""Exit codes that docs/plan-format.md lists."""


class Outcome(NamedTuple):
    """One input's outcome."""

    at: int
    """The input's number: with the seed it gives the same bytes again."""
    file_format: str
    kind: str
    """refused, accepted, or one of FAULTS."""
    verb: str
    """The command line; empty where the loader alone was asked."""
    detail: str
    """The message, the exception, or the rule that is broken."""
    seed: int

    def __str__(self) -> str:
        reader = f"`{self.verb}`" if self.verb else "the loader"
        return (
            f"input {self.at} of seed {self.seed}, a {self.file_format}, in {reader}: {self.kind}: "
            f"{self.detail} (scripts/fuzz_files.py {self.seed} 1 --first {self.at} --show)"
        )


class _Overtime(BaseException):
    """An input has used its time."""


class Session:
    """Inputs from one seed, in a scratch folder that is the working directory."""

    def __init__(self, seed: int, folder: Path, verb_every: int) -> None:
        self._seed = seed
        self._verb_every = verb_every
        self._folder = folder
        self._seeds = {name: one.seeds() for name, one in FORMATS.items()}
        self._names = [name for name, one in FORMATS.items() for _ in range(one.weight)]
        for name, content in good_files().items():
            (folder / name).write_bytes(content)

    def input(self, index: int) -> tuple[str, bytes, random.Random]:
        """An input's format, its bytes, and the generator that chooses what reads it."""
        rng = random.Random(f"{self._seed}:{index}")
        name = rng.choice(self._names)
        seeds = self._seeds[name]
        other = rng.choice(self._seeds[rng.choice(self._names)])
        return name, mutant(rng, rng.choice(seeds), other), rng

    def run(self, index: int) -> Outcome:
        """Write one input, load it, check it, and run a command line for some."""
        name, content, rng = self.input(index)
        asked = FORMATS[name]
        path = self._folder / asked.name
        path.write_bytes(content)
        verb = ""
        try:
            with _limits():
                kind, detail = self._load(asked, path)
                every = self._verb_every * (1 if kind == "accepted" else 10)
                if asked.verbs and kind in ("accepted", "refused") and rng.randrange(every) == 0:
                    verb = rng.choice(asked.verbs)
                    kind, detail = self._verb(asked, verb, kind, detail)
        except _Overtime:
            kind, detail = "slow", f"over {MOST_SECONDS:g} s"
        except MemoryError as error:
            kind, detail = "large", f"over {MOST_BYTES >> 30} GiB: {error}"
        except Exception as error:
            kind, detail = "escaped", f"{type(error).__name__}: {error}"
        return Outcome(index, name, kind, verb, detail, self._seed)

    def _load(self, asked: Format, path: Path) -> tuple[str, str]:
        try:
            loaded = asked.load(path)
        except AutopartError as error:
            return "refused", str(error)
        for record in loaded:
            try:
                fault = fault_of(record, self._folder / "scratch.json")
            except AutopartError as error:
                return "wrong", f"accepted, and then: {error}"
            if fault is not None:
                return "wrong", fault
        return "accepted", ""

    def _verb(self, asked: Format, verb: str, kind: str, detail: str) -> tuple[str, str]:
        """The outcome of a command line."""
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = exit_code(verb.split())
        finally:
            for path in self._folder.glob("out*"):
                path.unlink() if path.is_file() else shutil.rmtree(path)
        lines = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
        if code not in EXITS or "Traceback" in err.getvalue():
            return "escaped", f"exit code {code}: {err.getvalue()[-300:]}"
        if kind == "refused":
            # `verify` reads a plan undecided and finds its contradictions by its checks.
            fine = len(lines) == 1 or (verb.startswith("verify") and code == 1)
            fine &= code in ((1, 2) if asked.is_usage else (1,))
            # A node without a choice for one device is no layer, and yet Piper's own planner takes it.
            fine |= code == 0 and "a profile needs one" in detail
            return ("refused", detail) if fine else ("wrong", f"{detail}, and yet exit {code}")
        if code not in (0, 1) and not lines:
            return "escaped", f"exit code {code} without a word"
        figures = re.search(r"(?<![\w'./-])(nan|inf)(?![\w'./-])", out.getvalue())
        if figures and not lines:
            return "wrong", f"a table has {figures[0]}"
        if "--json" in verb and code == 0:
            json.loads(out.getvalue(), parse_constant=_no_number)
        return "accepted", lines[0] if lines else ""


def _no_number(word: str) -> Any:
    raise ValueError(f"a document has {word}")


@contextlib.contextmanager
def _apart_from_earlier_work() -> Generator[None]:
    """Keep what this process did before from counting for an input.

    Collections in this block leave older objects alone: their number adds no seconds, and garbage
    of others, such as an open file, gives no warning here. Warnings are errors.
    """
    gc.freeze()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _limits() -> Generator[None]:
    """CPU seconds and address space for what runs inside."""

    def stop(*_: object) -> None:
        raise _Overtime

    before = signal.signal(signal.SIGVTALRM, stop)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, limits[1]))
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


class Counts(NamedTuple):
    """The outcomes of many inputs."""

    outcomes: Counter[str]
    """How many inputs had each outcome."""
    by_format: Counter[tuple[str, str]]
    """The same for each format."""
    verbs: int
    """How many inputs went through a whole command line."""
    faults: list[Outcome]
    """The inputs that must not be."""
    cpu_seconds: float
    """CPU seconds over all inputs."""


def run_inputs(
    seed: int, first: int, count: int, folder: Path, verb_every: int = VERB_EVERY
) -> Counts:
    """Run inputs `first` to `first + count - 1`; `folder` becomes the working directory."""
    outcomes: Counter[str] = Counter()
    by_format: Counter[tuple[str, str]] = Counter()
    faults: list[Outcome] = []
    verbs, began = 0, time.process_time()
    with contextlib.chdir(folder), _apart_from_earlier_work():
        session = Session(seed, folder, verb_every)
        for index in range(first, first + count):
            found = session.run(index)
            outcomes[found.kind] += 1
            by_format[found.file_format, found.kind] += 1
            verbs += bool(found.verb)
            if found.kind in FAULTS:
                faults.append(found)
    return Counts(outcomes, by_format, verbs, faults, time.process_time() - began)
