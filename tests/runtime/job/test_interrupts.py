"""Ctrl-C on a rank: the failure is on the board, whichever of the two guards hears it."""

# pyright: reportPrivateImportUsage=false

import signal
from collections.abc import Callable
from typing import Any

import pytest
from torch import distributed

from autopart.records.plan import Plan
from autopart.runtime.engine.failures import Failure
from autopart.runtime.engine.run_settings import RunSettings
from autopart.runtime.job import rank as rank_of_a_run
from autopart.runtime.job import status_board as board
from autopart.runtime.job.status_board import INTERRUPT, Ending, Guard, StatusBoard
from autopart.runtime.job.world import World
from tests.support.exporters.plans import make_plan

SHORT = 0.004
"""A timeout in seconds; a guard that hears nothing then blames a rank that hangs, after ten of them."""


class Ended(BaseException):
    """A guard ends its process."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Idle(Guard):
    """A guard whose thread never runs."""

    def start(self) -> None:
        pass


def interrupted_rank(
    monkeypatch: pytest.MonkeyPatch, work: Callable[..., Any]
) -> distributed.HashStore:
    """Run a rank whose training is `work`, without a guard; the store that it leaves."""
    store = distributed.HashStore()
    plan: Plan = make_plan([["a"], ["b"]], [[0], [1]], 2, "1f1b")
    world = World(0, 2, 0, 2, "localhost", 1, "0", hosts_store=False, under_torchrun=False)

    def the_store(*_: object) -> distributed.HashStore:
        return store

    def met(*_: object) -> None:
        pass

    replaced = {"find_store": the_store, "connect_to": the_store, "meet": met, "_run": work}
    for name, value in (replaced | {"Guard": Idle}).items():
        monkeypatch.setattr(rank_of_a_run, name, value)
    with pytest.raises(KeyboardInterrupt):
        rank_of_a_run.run_as_rank(plan, RunSettings(model="none", steps=1), world)
    return store


def test_a_rank_that_hears_ctrl_c_claims_the_failure_before_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = interrupted_rank(monkeypatch, lambda *_: signal.raise_signal(signal.SIGINT))
    assert StatusBoard(store, 1, 2).failure() == Failure(rank=0, message=INTERRUPT)


def test_a_rank_whose_store_is_gone_ends_on_ctrl_c_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(*_: object) -> bool:
        raise RuntimeError("the store's host has ended")

    monkeypatch.setattr(StatusBoard, "claim", gone)
    interrupted_rank(monkeypatch, lambda *_: signal.raise_signal(signal.SIGINT))


def ended_guard(
    monkeypatch: pytest.MonkeyPatch, *, speaks: bool, heard: Callable[[Guard], bool]
) -> tuple[int, list[Failure], Failure | None]:
    """The exit code of a guard that hears Ctrl-C, what it tells, and the failure on the board.

    The guard runs in this thread: nothing here depends on time.
    """

    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(board.os, "_exit", end)
    store, told = distributed.HashStore(), list[Failure]()
    guards: list[Guard] = []
    ending = Ending(lambda: heard(guards[0]), told.append, speaks, None)
    guards.append(Guard(StatusBoard(store, 0, 2), SHORT, ending))
    with pytest.raises(Ended) as ended:
        guards[0].run()
    return ended.value.code, told, StatusBoard(store, 1, 2).failure()


@pytest.mark.parametrize("speaks", [False, True])
def test_a_guard_ends_a_rank_whose_main_thread_is_inside_torch(
    monkeypatch: pytest.MonkeyPatch, speaks: bool
) -> None:
    failure = Failure(rank=0, message=INTERRUPT)
    code, told, claimed = ended_guard(monkeypatch, speaks=speaks, heard=lambda _: True)
    assert (code, claimed) == (130, failure)
    assert told == [failure] * speaks


def test_a_guard_leaves_the_word_to_a_main_thread_that_ends_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def heard(guard: Guard) -> bool:
        # The main thread hears it too, and is cleaning up.
        guard.leave_soon(0.0)
        return True

    assert ended_guard(monkeypatch, speaks=True, heard=heard) == (1, [], None)
