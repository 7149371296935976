"""Hostile command lines: no traceback, always an end, and one line with a reason.

`python scripts/hostile_lines.py` runs all of them, and prints the counts of docs/reliability.md.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
import typer.main

from autopart.cli.application import app
from autopart.errors import AutopartError
from tests.support.hostile_lines import VERBS, hostile_lines
from tests.support.hostile_session import Told, fault_of, make_folder, run_lines

LINES = list(hostile_lines())
EACH = 10
"""The slow tests run every so-manieth line, the long ones all."""


@pytest.fixture
def hostile_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_some_hostile_lines_are_refused_in_one_line(hostile_folder: Path) -> None:
    session = run_lines(LINES[::EACH], hostile_folder)
    assert session.faults == []
    assert session.codes[1] > 5 and session.codes[2] > 5


@pytest.mark.long
def test_all_hostile_lines_are_refused_in_one_line(hostile_folder: Path) -> None:
    session = run_lines(LINES, hostile_folder)
    assert session.faults == []
    assert session.lines >= 420


def test_the_table_names_every_command_and_every_option_with_a_value() -> None:
    commands = typer.main.get_command(app()).commands  # type: ignore[attr-defined]
    assert set(VERBS) == set(commands)
    for name, command in commands.items():
        options = {
            parameter.opts[0]
            for parameter in command.params
            if parameter.opts[0].startswith("-") and not parameter.is_flag
        }
        assert options == set(VERBS[name].options), name


def raising(error: BaseException) -> Told:
    raise error


@pytest.mark.parametrize(
    ("outcome", "fault"),
    [
        (Told(1, "", "error: no\n"), None),
        (Told(1, "", "warning: hm\nerror: no\n"), None),
        (Told(7, "", "error: no\n"), "exit code 7"),
        (Told(1, "", ""), "with 0 lines"),
        (Told(1, "", "error: no\nand\n"), "with 2 lines"),
        (Told(1, "", "error: \n"), "a reason of 0 characters"),
        (Told(1, "", f"error: {'x' * 201}; do\n"), "a reason of 201 characters"),
        (Told(0, "\x1b[31m", ""), "control characters"),
        (KeyError("key"), "raises KeyError"),
        (AutopartError("no"), "raises AutopartError"),
        (SystemExit(0), "raises SystemExit"),
    ],
)
def test_faults_are_found(outcome: Told | BaseException, fault: str | None) -> None:
    def run(_line: Sequence[str]) -> Told:
        return raising(outcome) if isinstance(outcome, BaseException) else outcome

    found = fault_of(("show",), run)
    assert found == fault if fault is None or found is None else fault in found
