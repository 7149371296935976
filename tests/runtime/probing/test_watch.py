"""Heartbeats: whose notes have ended is gone, and one rank alone tells so."""

from datetime import timedelta
from pathlib import Path

import pytest
from torch import distributed

from autopart.errors import RunError, UsageError
from autopart.runtime.engine.failures import LostRank
from autopart.runtime.job.status_board import Note
from autopart.runtime.job.world import World
from autopart.runtime.probing import watch
from autopart.runtime.probing.watch import Beats, Watch


def note(count: int, state: str = "working") -> Note:
    return Note(count=count, on="a collective", state=state)


def test_the_rank_whose_notes_ended_first_is_gone() -> None:
    beats = Beats()
    assert beats.gone([note(1), note(1), note(1)], 0.0, 3.0) is None
    assert beats.gone([note(2), note(1), note(2)], 1.0, 3.0) is None
    # Ranks 1 and 2 are silent now, rank 1 for longer.
    assert beats.gone([note(3), note(1), note(2)], 4.5, 3.0) == 1
    assert beats.gone([note(4), note(2), note(2)], 4.9, 3.0) == 2


def test_a_rank_that_has_said_that_it_ends_is_not_gone() -> None:
    beats = Beats()
    ended = [note(1), note(1, "done"), None]
    assert beats.gone(ended, 0.0, 3.0) is None
    assert beats.gone([note(2), *ended[1:]], 9.0, 3.0) is None


@pytest.fixture
def watches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Watch]:
    """Three ranks of one job; rank 2 writes a single note."""
    store = distributed.FileStore(str(tmp_path / "store"), 3)
    store.set_timeout(timedelta(seconds=100))

    def connected(world: World) -> distributed.Store:
        return store

    monkeypatch.setattr(watch, "connect_to", connected)
    for name, seconds in (("GONE", 0.2), ("_PATIENCE", 100.0), ("BEAT", 0.02)):
        monkeypatch.setattr(watch, name, seconds)
    made = [
        Watch(World(rank, 3, rank, 3, "localhost", 1, "0", rank == 0, under_torchrun=False))
        for rank in range(3)
    ]
    for one in made:
        one.hosts = ("alpha", "beta", "gamma")
        one.doing("an all-reduce")
        one.beat()
    return made


def lost() -> RunError:
    error = RunError("rank 0 lost another rank in an all-reduce")
    error.__cause__ = LostRank(None, "an all-reduce", "closed")
    return error


def test_the_lost_rank_is_named_with_its_host_by_one_rank_alone(
    watches: list[Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The others go on writing notes while rank 0 looks.
    def sleep(seconds: float) -> None:
        for one in watches[:2]:
            one.beat()

    monkeypatch.setattr(watch.time, "sleep", sleep)
    told = watches[0].account(lost())
    assert told is not None and told.rank == 0
    assert "rank 2 on host gamma is gone; it was last on an all-reduce" in str(told)
    assert watches[1].account(lost()) is None


def test_an_error_of_a_ranks_own_is_told_as_it_is(watches: list[Watch]) -> None:
    own = UsageError("device cuda: no GPU")
    assert watches[1].account(own) is own
    assert own.rank == 1
    assert watches[0].account(lost()) is None


def test_ranks_that_are_all_stopped_end_at_once_and_blame_none(
    watches: list[Watch], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError("nobody is waited for")

    monkeypatch.setattr(watch.time, "sleep", sleep)
    for one in watches[1:]:
        one.end()
    watches[0].stopped()
    assert capsys.readouterr() == ("", "")


def test_a_rank_that_torchrun_stops_first_tells_which_one_died(
    watches: list[Watch], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: watches[1].beat())
    watches[0].stopped()
    assert capsys.readouterr().err.startswith("error: rank 2 on host gamma is gone")
