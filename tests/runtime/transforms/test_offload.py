"""Stashes move to the host and back: order of events, and reuse of buffers."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from autopart.runtime.transforms.host_copies import HostCopies, PendingCopies
from autopart.runtime.transforms.layer_policies import apply_policies, offloading
from autopart.runtime.transforms.offload import HostStash
from tests.runtime.transforms.test_layer_policies import ONE_TENSOR, chain, program_of

Diary = list[str]
NOTED = ("tanh", "sigmoid", "gelu", "tanh_backward", "sigmoid_backward", "gelu_backward")


class Noting(TorchDispatchMode):
    """Writes the layers' operations into a diary."""

    def __init__(self, diary: Diary) -> None:
        super().__init__()
        self.diary = diary

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::")
        if name in NOTED:
            self.diary.append(name)
        return func(*args, **(kwargs or {}))


class NotedPending(PendingCopies):
    """Writes into the diary when the wait is called."""

    def __init__(self, copies: Sequence[torch.Tensor], diary: Diary, end: str) -> None:
        super().__init__(copies)
        self.diary, self.end = diary, end

    def wait(self) -> None:
        self.diary.append(self.end)


class NotedCopies(HostCopies):
    """Writes into the diary when copies start; stashes are numbered in the order in which they
    leave."""

    def __init__(self, diary: Diary) -> None:
        super().__init__()
        self.diary, self.number = diary, 0
        self.numbers: dict[int, int] = {}

    def to_host(self, tensors: Sequence[torch.Tensor]) -> PendingCopies:
        self.number += 1
        copies = super().to_host(tensors).copies
        self.numbers[copies[0].data_ptr()] = self.number
        self.diary.append(f"{self.number} leaves")
        return NotedPending(copies, self.diary, f"{self.number} has left")

    def to_device(self, tensors: Sequence[torch.Tensor]) -> PendingCopies:
        number = self.numbers[tensors[0].data_ptr()]
        self.diary.append(f"{number} comes")
        return NotedPending(super().to_device(tensors).copies, self.diary, f"{number} is here")


def offloaded(copies: HostCopies, *layers: str) -> tuple[Any, HostStash]:
    """The chain tanh, sigmoid, gelu, tanh with some `layers` offloaded: its forward and its
    stash."""
    model = chain(torch.tanh, torch.sigmoid, nn.functional.gelu, torch.tanh)
    program, leaves = program_of(model)
    host = HostStash(copies)
    apply_policies(program, dict.fromkeys(layers, offloading(host)))

    def forward(microbatch: int) -> torch.Tensor:
        with host.forward(microbatch):
            return program.module(*(leaves[name] for name in program.inputs))[0]

    return forward, host


def test_at_most_one_layer_is_copied_in_each_direction():
    diary: Diary = []
    forward, host = offloaded(NotedCopies(diary), "1", "2", "4")
    with Noting(diary):
        loss = forward(0)
        diary.append("|")
        with host.backward(0):
            loss.backward()
    there, back = " ".join(diary).split(" | ")
    assert there == (
        "tanh 1 leaves sigmoid 1 has left 2 leaves gelu tanh 2 has left 3 leaves 3 has left"
    )
    assert back == (
        "3 comes 3 is here 2 comes tanh_backward gelu_backward "
        "2 is here 1 comes sigmoid_backward 1 is here tanh_backward"
    )


def test_no_copy_of_a_microbatch_outlasts_its_actions():
    diary: Diary = []
    forward, host = offloaded(NotedCopies(diary), "1", "4")
    losses = [forward(m) for m in range(2)]
    for m, loss in enumerate(losses):
        before = len(diary)
        with host.backward(m):
            loss.backward()
        assert {note.split()[0] for note in diary[before:]} == {str(2 * m + 1), str(2 * m + 2)}
    left = [note for note in diary if note.endswith(("leaves", "comes"))]
    done = [note for note in diary if note.endswith(("left", "here"))]
    assert len(left) == len(done) == 8


def test_host_buffers_are_reused():
    forward, host = offloaded(HostCopies(), "1", "2", "3", "4")
    for _ in range(3):
        losses = [forward(m) for m in range(2)]
        for m, loss in enumerate(losses):
            with host.backward(m):
                loss.backward()
    # Two microbatches are in flight. For each, tanh, sigmoid and tanh save one result, and gelu
    # saves its input and its result.
    assert [buffer.nbytes for buffer in host.copies.buffers] == [ONE_TENSOR] * 2 * 5


@pytest.mark.slow
def test_reused_buffers_return_the_bytes_that_were_offloaded():
    forward, host = offloaded(HostCopies(), "1", "2", "3", "4")
    kept, _ = offloaded(HostCopies())
    for _ in range(2):
        losses = [forward(m) for m in range(3)]
        for m in (1, 0, 2):
            with host.backward(m):
                losses[m].backward()
            expected = kept(m)
            expected.backward()
            torch.testing.assert_close(losses[m], expected, rtol=0, atol=0)
