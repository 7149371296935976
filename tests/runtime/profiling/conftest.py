import pytest

from autopart.runtime.profiling import measured_graph
from tests.support.runtime.scripted_stopwatch import rising_seconds


@pytest.fixture
def told_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles read known seconds, each larger than the one before. The work is real."""
    monkeypatch.setattr(measured_graph, "stopwatch_of", rising_seconds)
