import pytest
from torch import distributed

from autopart.runtime.execution.board import Board, Note, Progress, describe, stuck_failure
from autopart.runtime.execution.faults import Failure


def note(count: int, on: str, state: str = "working", **fields: float) -> Note:
    return Note(count=count, on=on, state=state, **fields)


def test_a_run_that_goes_on_anywhere_is_not_stuck():
    progress = Progress(timeout=10.0, now=0.0)
    for now in range(0, 100, 5):
        notes = [note(1, "0B0", "waiting", peer=1), note(now + 1, f"1F{now}")]
        assert progress.look(notes, float(now)) is None


def test_the_working_rank_is_named_and_not_those_that_wait_for_it():
    progress = Progress(timeout=10.0, now=0.0)
    notes = [note(7, "0B0", "waiting", peer=1), note(3, "1F0"), note(5, "2F0", "waiting", peer=1)]
    assert progress.look(notes, 1.0) is None
    stuck = progress.look(notes, 12.0)
    assert stuck is not None and (stuck.rank, stuck.on, stuck.seconds) == (1, "1F0", 11.0)
    assert "rank 1 hangs on 1F0" in stuck_failure(stuck).message


def test_of_several_working_ranks_the_one_that_stands_still_longest_is_named():
    progress = Progress(timeout=10.0, now=0.0)
    progress.look([note(1, "0F0"), note(1, "1F0")], 1.0)
    progress.look([note(2, "0F1"), note(1, "1F0")], 5.0)
    stuck = progress.look([note(2, "0F1"), note(1, "1F0")], 16.0)
    assert stuck is not None and stuck.rank == 1


def test_ranks_that_all_wait_are_stuck_too():
    progress = Progress(timeout=10.0, now=0.0)
    notes = [note(1, "0B0", "waiting", peer=1), note(1, "1F0", "waiting", peer=0)]
    progress.look(notes, 1.0)
    stuck = progress.look(notes, 12.0)
    assert stuck is not None and stuck.on == "0B0, waiting for rank 1"


def test_setting_up_may_take_ten_times_as_long():
    progress = Progress(timeout=10.0, now=0.0)
    notes = [note(1, "capturing the model", patience=10.0), note(4, "0F0", "waiting", peer=0)]
    progress.look(notes, 0.0)
    assert progress.look(notes, 99.0) is None
    assert progress.look(notes, 101.0) is not None


def test_a_rank_that_never_wrote_a_note_is_starting_up():
    progress = Progress(timeout=1.0, now=0.0)
    notes = [note(1, "meeting the other ranks", "waiting"), None]
    progress.look(notes, 0.0)
    stuck = progress.look(notes, 11.0)
    assert stuck is not None and (stuck.rank, stuck.on) == (1, "starting up")


def test_a_run_that_is_over_is_not_stuck():
    progress = Progress(timeout=1.0, now=0.0)
    assert progress.look([note(1, "nothing more", "done")], 1000.0) is None


@pytest.fixture
def board() -> Board:
    return Board(distributed.HashStore(), 1, 3)


def test_notes_are_read_back_as_they_were_written(board: Board):
    board.working("1F3")
    board.step = 2
    board.waiting("1B3", 2)
    assert board.notes() == [None, note(2, "1B3", "waiting", peer=2, step=2), None]
    assert describe(board.last) == "1B3, waiting for rank 2"


def test_the_first_failure_stands_and_the_second_writer_learns_of_it(board: Board):
    first = Failure(rank=1, message="rank 1 raised")
    assert board.failure() is None
    assert board.claim(first) == first
    assert board.claim(Failure(rank=2, message="rank 2 lost rank 1", is_guess=True)) == first
    assert board.failure() == first
