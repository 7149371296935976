"""Ranks find the store and each other in time, or say in one line who is missing."""

import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from torch import distributed

from autopart.cli import main as command_line
from autopart.errors import PlanError, RunError, UsageError
from autopart.runtime.job import meeting, rank
from autopart.runtime.job.meeting import find_store, leave_last, meet
from autopart.runtime.job.status_board import StatusBoard
from autopart.runtime.job.world import World, read_world

BY_HAND = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
SOON = 0.3


@pytest.fixture
def mute() -> Iterator[int]:
    """The port of a program that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def world(number: int, port: int, **changes: object) -> World:
    return replace(
        read_world({**BY_HAND, "RANK": str(number), "MASTER_PORT": str(port)}),
        **changes,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"RANK": "5"}, "RANK=5 is not below WORLD_SIZE=2"),
        ({"RANK": "-1"}, "RANK=-1 is not below WORLD_SIZE=2"),
        ({"WORLD_SIZE": "0"}, "RANK=0 is not below WORLD_SIZE=0"),
        ({"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK=2 is not below"),
        ({"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE=3 is above WORLD_SIZE=2"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT=99999 is no port"),
    ],
)
def test_impossible_variables_are_refused(changes: dict[str, str], words: str):
    with pytest.raises(UsageError, match=words):
        read_world(BY_HAND | changes)


def test_ranks_that_do_not_come_are_named():
    board = StatusBoard(distributed.HashStore(), 1, 4)
    board.working("starting up")
    with pytest.raises(RunError, match=r"ranks 0, 2, 3 did not come within 0 s; .*--timeout"):
        meet(board, SOON)


def test_ranks_that_are_all_there_have_met():
    store = distributed.HashStore()
    boards = [StatusBoard(store, number, 2) for number in range(2)]
    for board in boards:
        board.working("starting up")
    meet(boards[0], SOON)


def test_an_occupied_port_is_one_line(mute: int):
    with pytest.raises(RunError, match=f"cannot serve port {mute}: another program has it"):
        find_store(world(0, mute), SOON)


def test_a_store_that_is_not_there_is_one_line():
    with pytest.raises(RunError, match=r"rank 1 of 2 found no store at 127\.0\.0\.1 port"):
        find_store(world(1, free_port()), SOON)


def test_a_host_without_an_address_is_one_line(monkeypatch: pytest.MonkeyPatch):
    """Where no name server answers, a real lookup may take a minute."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(RunError, match=r"found no store at no\.such\.host\.invalid"):
        find_store(world(1, 29500, host="no.such.host.invalid"), SOON)


def test_a_program_that_is_no_store_does_not_keep_a_rank_waiting(
    mute: int, monkeypatch: pytest.MonkeyPatch
):
    # The rank's own connection goes on in a thread. It must not wait a minute behind the test.
    monkeypatch.setattr(meeting, "ANSWER_SECONDS", 10 * SOON)
    with pytest.raises(RunError, match="found no store"):
        find_store(world(1, mute), SOON)


def test_ranks_find_the_store_that_rank_0_serves():
    port = free_port()
    served = find_store(world(0, port), SOON)
    served.set("key", "value")
    assert find_store(world(1, port), 60.0).get("key") == b"value"


def test_a_silent_rank_leaves_last_under_torchrun_only(monkeypatch: pytest.MonkeyPatch):
    """torchrun kills all ranks once one has ended. So only the rank that tells may end."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    leave_last(world(1, 29500))
    assert slept == []
    leave_last(world(1, 29500, under_torchrun=True))
    assert slept == [meeting.SILENT_SECONDS]
    with pytest.raises(SystemExit):
        rank._raise_once(world(1, 29500, under_torchrun=True), PlanError("for 3 ranks"))
    assert slept == [meeting.SILENT_SECONDS] * 2
    with pytest.raises(PlanError):
        rank._raise_once(world(0, 29500, under_torchrun=True), PlanError("for 3 ranks"))
    assert len(slept) == 2


def test_an_error_of_all_ranks_is_told_by_the_first_on_each_node(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    for name, value in {**BY_HAND, "TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    line = ("run", "absent.json", "model.py")
    assert command_line.exit_code(line) == 1
    assert (capsys.readouterr().err, slept) == ("", [command_line.SILENT_SECONDS])
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert command_line.exit_code(line) == 1
    assert capsys.readouterr().err == "error: absent.json: there is no such file\n"
    assert len(slept) == 1
