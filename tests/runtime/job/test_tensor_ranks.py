"""Processes among tensor groups, and the loss of one."""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from torch import distributed

from autopart.runtime.engine.failures import LostRank
from autopart.runtime.job.rank import _account
from autopart.runtime.job.status_board import StatusBoard
from autopart.runtime.job.tensor_ranks import group_place, process_of


def test_each_process_has_one_place_in_one_group() -> None:
    places = [group_place(process, 4) for process in range(8)]
    assert places == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert [process_of(rank, place, 4) for rank, place in places] == list(range(8))


def test_a_lost_process_behind_torchs_own_error_is_a_guess() -> None:
    # Torch's backward of a stage puts an error of its own around any other.
    error = RuntimeError("Failed to run stage backward")
    error.__cause__ = LostRank(None, "a collective of its tensor group", "connection reset")
    failure = _account(error, 0, StatusBoard(distributed.HashStore(), 0, 2))
    assert failure is not None and failure.is_guess
    assert failure.message.startswith("rank 0 lost another rank during a collective of its tensor")
