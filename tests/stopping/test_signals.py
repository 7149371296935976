"""Temporary folders and child processes end with the process, whatever signal ends it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autopart.stopping.signals import (
    ENDING,
    Stopped,
    ending_signals,
    heard_interrupts,
    held_signals,
)

PROGRAM = """
import os, signal, sys, time
from autopart.stopping.signals import temporary_folder
with temporary_folder("autopart-test-") as folder:
    (folder / "file").write_text("x")
    os.kill(os.getpid(), signal.{name})
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_temporary_folder_is_removed_where_a_signal_ends_the_program(
    tmp_path: Path, name: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(name=name)],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == -getattr(signal, name)
    assert list(tmp_path.iterdir()) == []


def test_an_ending_signal_is_raised_once_and_then_ignored_until_all_is_clean() -> None:
    cleaned = False
    with pytest.raises(Stopped, match="stopped by SIGTERM"), ending_signals():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            for number in ENDING:
                signal.raise_signal(number)
            cleaned = True
    assert cleaned
    assert all(signal.getsignal(number) is signal.SIG_DFL for number in ENDING)


def test_a_handler_of_the_program_itself_stays() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with ending_signals():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_held_signals_act_after_the_work() -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), held_signals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done = True
    assert done


def test_an_interrupt_is_heard_while_the_main_thread_cannot_raise_it() -> None:
    with heard_interrupts() as heard:
        assert not heard()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert heard()
    assert not heard()
