import io
import re
import sys
from types import SimpleNamespace

import pytest

from autopart.cli.console import TimeLeft, minutes, progress_bar
from autopart.cli.progress_lines import ProgressLines
from autopart.cli.search_line import search_line


def test_progress_writes_a_line_at_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    always, seldom = ProgressLines(every=0.0), ProgressLines(every=1e6)
    for done in (1, 2):
        always(done, 100, "35 samples/s")
        seldom(done, 100, "35 samples/s")
    assert capsys.readouterr() == ("", "step 1 of 100: 35 samples/s\nstep 2 of 100: 35 samples/s\n")


def test_a_bar_shows_the_time_left_once_it_is_known() -> None:
    known, unknown = SimpleNamespace(time_remaining=65.0), SimpleNamespace(time_remaining=None)
    assert [TimeLeft().render(task).plain for task in (known, unknown)] == ["1:05 left", ""]


def test_times_left_are_read_at_a_glance() -> None:
    assert [minutes(x) for x in (0.2, 7.4, 65, 3723)] == ["0:00", "0:07", "1:05", "1:02:03"]


@pytest.mark.slow
def test_long_work_shows_the_time_left_on_a_terminal_and_nothing_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def shown(stream: io.StringIO) -> str:
        monkeypatch.setattr(sys, "stderr", stream)
        with progress_bar("measuring") as bar:
            for done in range(4):
                bar(done, 4)
        with search_line("step", 90.0) as best:
            best(0.5)
        return stream.getvalue()

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    said = shown(Terminal())
    assert "measuring" in said and "best step so far 500 ms; Ctrl-C takes this plan" in said
    found = re.findall(r"(\d):(\d\d), at most (\d):(\d\d) left", said)
    assert found
    for numbers in found:  # elapsed and left, each rounded
        minutes_gone, gone, minutes_left, left = map(int, numbers)
        assert abs(60 * (minutes_gone + minutes_left) + gone + left - 90) <= 1
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert shown(io.StringIO()) == ""
