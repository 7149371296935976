"""Processes among tensor groups: where each stands, what they must share, and the loss of one."""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

import pytest
import torch
from torch import distributed, nn

from autopart.errors import ModelError, RunError
from autopart.runtime.engine.failures import LostRank
from autopart.runtime.engine.plan_match import check_same_in_group
from autopart.runtime.job.rank import _account
from autopart.runtime.job.status_board import StatusBoard
from autopart.runtime.job.tensor_ranks import (
    GroupPlace,
    agree_in_group,
    lost_process,
    place_in_plan,
)
from autopart.runtime.models.model import TrainingModel
from autopart.runtime.sharding.thread_ranks import ThreadRanks
from tests.support.runtime.plans import two_stage_plan
from tests.support.tensor_plans import in_groups

CPU = torch.device("cpu")


def test_each_process_has_one_place_in_one_group() -> None:
    plan = in_groups(two_stage_plan(), 4)
    places = [place_in_plan(plan, process) for process in range(8)]
    assert places == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]


def test_a_lost_rank_of_a_place_s_world_is_told_as_its_process() -> None:
    # Group 1 of groups of 4, seen from place 2.
    assert lost_process(LostRank(1, "a message", "gone"), 2, 4) == 6
    assert lost_process(LostRank(1, "a message", "gone"), 0, 1) == 1
    assert lost_process(LostRank(None, "a sum", "gone"), 2, 4) is None


def test_a_lost_process_behind_torchs_own_error_is_a_guess() -> None:
    # Torch's backward of a stage puts an error of its own around any other.
    error = RuntimeError("Failed to run stage backward")
    error.__cause__ = LostRank(None, "a collective of its tensor group", "connection reset")
    failure = _account(error, 0, StatusBoard(distributed.HashStore(), 0, 2))
    assert failure is not None and failure.is_guess
    assert failure.message.startswith("rank 0 lost another rank during a collective of its tensor")


@pytest.mark.parametrize(("of_last", "agrees"), [("plan", True), ("another plan", False)])
def test_processes_of_a_group_must_have_one_plan(of_last: str, *, agrees: bool) -> None:
    group, store, ended = ThreadRanks(3), distributed.HashStore(), set[int]()

    def work(rank: int) -> None:
        said = of_last if rank == 2 else "plan"
        try:
            agree_in_group(store, GroupPlace(0, rank), group, said, CPU)
        except RunError as error:
            assert "tensor group 0 were started with different plans" in str(error)
            ended.add(rank)

    group.run(work)
    assert ended == (set() if agrees else {0, 1, 2})


def test_processes_of_a_group_must_build_equal_weights() -> None:
    group, ended = ThreadRanks(2), set[int]()
    models = [TrainingModel(nn.Linear(2, 2), nn.functional.mse_loss) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())

    def work(rank: int) -> None:
        try:
            check_same_in_group(models[rank], group, CPU)
        except ModelError:
            ended.add(rank)

    group.run(work)
    assert ended == set()
    with torch.no_grad():
        models[1].model.bias += 1
    # The larger sum is known to both, and the process without it ends the run.
    group.run(work)
    assert ended == {0}
