"""Processes that stay alive between tests and run functions as ranks of a gloo process group."""

import os
import time
import traceback
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from autopart.runtime.engine import pipeline
from autopart.runtime.job import training
from autopart.runtime.models.host_generators import HostGenerators
from tests.support.runtime.captured_once import captured_for_plan

START_SECONDS = 600.0
CALL_SECONDS = 600.0
STALL_SECONDS = 500
"""Long enough for a busy machine, and shorter than a test may take."""


class RankPool:
    """`num_ranks` processes; `call` runs one function on all of them at once."""

    def __init__(self, num_ranks: int) -> None:
        self._num_ranks = num_ranks
        self._start()

    def _start(self) -> None:
        self._store = distributed.TCPStore(
            "127.0.0.1",
            0,
            None,
            is_master=True,
            timeout=timedelta(seconds=STALL_SECONDS),
            wait_for_workers=False,
        )
        context = get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(self._num_ranks):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, rank, self._num_ranks, self._store.port), daemon=True
            )
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        self._collect(START_SECONDS)

    def call(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Run `function(rank, *arguments)` on every rank; returns the results in rank order.

        After a failure or a timeout the ranks may be out of step. The pool is then closed, and the
        next call starts new processes.
        """
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, arguments))
        return self._collect(CALL_SECONDS)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join(10)
        self._processes.clear()

    def _collect(self, seconds: float) -> list[Any]:
        """All answers in rank order; the first failure closes the pool."""
        until = time.monotonic() + seconds
        answers: dict[int, Any] = {}
        try:
            while len(answers) < len(self._pipes):
                missing = {p: r for r, p in enumerate(self._pipes) if r not in answers}
                ready = wait(list(missing), until - time.monotonic())
                assert ready, f"ranks {sorted(missing.values())} did not answer in {seconds} s"
                for pipe in ready:
                    failed, answers[missing[pipe]] = pipe.recv()
                    assert not failed, f"rank {missing[pipe]}:\n{answers[missing[pipe]]}"
        except BaseException:
            self.close()
            raise
        return [answers[rank] for rank in range(len(self._pipes))]


def _serve(pipe: Connection, rank: int, num_ranks: int, port: int) -> None:
    torch.set_num_threads(1)
    training.capture_for_plan = pipeline.capture_for_plan = captured_for_plan
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = distributed.TCPStore("127.0.0.1", port, None, is_master=False)
    distributed.init_process_group(
        "gloo",
        store=store,
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=STALL_SECONDS),
    )
    pipe.send((False, None))
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            with _state_restored():
                answer = function(rank, *arguments)
            _forget_groups()
            pipe.send((False, answer))
        except Exception:
            pipe.send((True, traceback.format_exc()))


@contextmanager
def _state_restored() -> Generator[None]:
    """Undo what a function changes for its whole process: no test depends on those before it."""
    environment, folder = dict(os.environ), Path.cwd()
    try:
        with HostGenerators().restored(), torch.random.fork_rng(), warnings.catch_warnings():
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)


def _forget_groups() -> None:
    """Destroy the process groups that a function created, once no rank uses them.

    Each group has a thread that wakes a hundred times per second. Hundreds of them took a third of
    two cores.
    """
    distributed.barrier()
    for group in list(distributed.distributed_c10d._world.pg_map):
        if group is not distributed.group.WORLD:
            distributed.destroy_process_group(group)
