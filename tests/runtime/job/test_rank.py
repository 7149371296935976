import pytest
import torch

from autopart import errors
from autopart.errors import ModelError, PlanError, RunError, UsageError
from autopart.runtime.engine.failures import Failure, LostRank, as_error, failure_of
from autopart.runtime.job.world import is_rank, read_world

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RESTART_COUNT": "2",
}


def test_a_rank_reads_its_place_from_torchrun_s_environment():
    world = read_world(TORCHRUN)
    assert (world.rank, world.size, world.local_rank, world.local_size) == (3, 4, 1, 2)
    assert (world.host, world.port, world.attempt) == ("10.0.0.1", 29500, "2")
    assert is_rank(TORCHRUN) and not is_rank({})


def test_a_missing_variable_is_named_with_advice():
    without = {k: v for k, v in TORCHRUN.items() if k != "MASTER_ADDR"}
    with pytest.raises(UsageError, match="MASTER_ADDR is not set; start the ranks with torchrun"):
        read_world(without)


def test_a_variable_that_is_not_a_number_is_a_usage_error():
    with pytest.raises(UsageError, match="'three'"):
        read_world({**TORCHRUN, "RANK": "three"})


def test_a_failure_names_the_rank_the_action_and_the_original_cause():
    wrapped = RuntimeError("a page of shapes")
    wrapped.__cause__ = torch.OutOfMemoryError("CUDA out of memory.\n Tried to allocate 2 GiB")
    failure = failure_of(wrapped, 2, "1F4")
    assert failure.message == (
        "rank 2 raised OutOfMemoryError on 1F4: CUDA out of memory. Tried to allocate 2 GiB"
    )


@pytest.mark.parametrize("kind", [ModelError, PlanError, RunError, UsageError])
def test_errors_that_the_user_can_fix_keep_their_message_and_class(
    kind: type[errors.AutopartError],
):
    failure = failure_of(kind("model.py:3 is wrong"), 0, "building the model")
    assert failure == Failure(rank=0, message="model.py:3 is wrong", kind=kind.__name__)
    assert type(as_error(failure)) is kind and str(as_error(failure)) == "model.py:3 is wrong"


def test_an_unknown_error_class_becomes_a_run_error():
    lost = LostRank(1, "0B0", "connection closed")
    assert str(lost) == "0B0: connection closed"
    assert type(as_error(Failure(rank=0, message="x", kind="LostRank"))) is RunError
