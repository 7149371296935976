import pytest

from autopart.cli.progress_lines import ProgressLines


def test_progress_writes_a_line_at_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    always, seldom = ProgressLines(every=0.0), ProgressLines(every=1e6)
    for done in (1, 2):
        always(done, 100, "35 samples/s")
        seldom(done, 100, "35 samples/s")
    assert capsys.readouterr() == ("", "step 1 of 100: 35 samples/s\nstep 2 of 100: 35 samples/s\n")
