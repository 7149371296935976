import pytest
from torch import distributed

from autopart.runtime.engine.failures import Failure
from autopart.runtime.job.status_board import (
    Note,
    StallDetector,
    StatusBoard,
    describe,
    stuck_failure,
)


def note(count: int, on: str, state: str = "working", **fields: float) -> Note:
    return Note(count=count, on=on, state=state, **fields)


def test_a_run_with_progress_on_any_rank_is_not_stuck():
    stalls = StallDetector(timeout=10.0, now=0.0)
    for now in range(0, 100, 5):
        notes = [note(1, "0B0", "waiting", other_rank=1), note(now + 1, f"1F{now}")]
        assert stalls.look(notes, float(now)) is None


def test_the_working_rank_is_blamed_and_not_the_waiting_ones():
    stalls = StallDetector(timeout=10.0, now=0.0)
    notes = [
        note(7, "0B0", "waiting", other_rank=1),
        note(3, "1F0"),
        note(5, "2F0", "waiting", other_rank=1),
    ]
    assert stalls.look(notes, 1.0) is None
    stuck = stalls.look(notes, 12.0)
    assert stuck is not None and (stuck.rank, stuck.on, stuck.seconds) == (1, "1F0", 11.0)
    assert "rank 1 hangs on 1F0" in stuck_failure(stuck).message


def test_among_several_working_ranks_the_one_with_the_oldest_note_is_blamed():
    stalls = StallDetector(timeout=10.0, now=0.0)
    stalls.look([note(1, "0F0"), note(1, "1F0")], 1.0)
    stalls.look([note(2, "0F1"), note(1, "1F0")], 5.0)
    stuck = stalls.look([note(2, "0F1"), note(1, "1F0")], 16.0)
    assert stuck is not None and stuck.rank == 1


def test_ranks_that_all_wait_are_stuck_too():
    stalls = StallDetector(timeout=10.0, now=0.0)
    notes = [note(1, "0B0", "waiting", other_rank=1), note(1, "1F0", "waiting", other_rank=0)]
    stalls.look(notes, 1.0)
    stuck = stalls.look(notes, 12.0)
    assert stuck is not None and stuck.on == "0B0, waiting for rank 1"


def test_setting_up_may_take_ten_times_as_long():
    stalls = StallDetector(timeout=10.0, now=0.0)
    notes = [note(1, "capturing the model", patience=10.0), note(4, "0F0", "waiting", other_rank=0)]
    stalls.look(notes, 0.0)
    assert stalls.look(notes, 99.0) is None
    assert stalls.look(notes, 101.0) is not None


def test_a_rank_that_never_wrote_a_note_is_starting_up():
    stalls = StallDetector(timeout=1.0, now=0.0)
    notes = [note(1, "meeting the other ranks", "waiting"), None]
    stalls.look(notes, 0.0)
    stuck = stalls.look(notes, 11.0)
    assert stuck is not None and (stuck.rank, stuck.on) == (1, "starting up")


def test_a_finished_run_is_not_stuck():
    stalls = StallDetector(timeout=1.0, now=0.0)
    assert stalls.look([note(1, "nothing more", "done")], 1000.0) is None


@pytest.fixture
def status_board() -> StatusBoard:
    return StatusBoard(distributed.HashStore(), 1, 3)


def test_notes_are_read_back_as_they_were_written(status_board: StatusBoard):
    status_board.working("1F3")
    status_board.step = 2
    status_board.waiting("1B3", 2)
    assert status_board.notes() == [None, note(2, "1B3", "waiting", other_rank=2, step=2), None]
    assert describe(status_board.last) == "1B3, waiting for rank 2"


def test_the_first_failure_stands_and_the_second_writer_learns_of_it(status_board: StatusBoard):
    first = Failure(rank=1, message="rank 1 raised")
    assert status_board.failure() is None
    assert status_board.claim(first)
    assert not status_board.claim(Failure(rank=2, message="rank 2 lost rank 1", is_guess=True))
    assert status_board.failure() == first


def test_of_two_equal_failures_one_rank_tells_its_own() -> None:
    store = distributed.HashStore()
    boards = [StatusBoard(store, rank, 2) for rank in range(2)]
    hang = Failure(rank=1, message="rank 1 hangs on 1F2")
    assert [board.claim(hang) for board in boards] == [True, False]
