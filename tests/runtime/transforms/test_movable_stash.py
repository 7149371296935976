"""A microbatch's stash leaves the rank's memory and comes back: same gradients, and no bytes meanwhile."""

import weakref
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from autopart.runtime.transforms.movable_stash import MovableStash

WIDTH, ROWS = 16, 4


def model() -> nn.Module:
    torch.manual_seed(0)
    parts = nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.Softmax(-1)
    return nn.Sequential(*parts, nn.BatchNorm1d(WIDTH), nn.Dropout(0.5)).double()


def received() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(ROWS, WIDTH, dtype=torch.float64, requires_grad=True)


def gradients(net: nn.Module, given: torch.Tensor, result: torch.Tensor) -> list[torch.Tensor]:
    result.sum().backward()
    assert given.grad is not None
    return [given.grad, *(p.grad for p in net.parameters() if p.grad is not None)]


def forward(net: nn.Module, given: torch.Tensor) -> tuple[torch.Tensor, MovableStash]:
    stash = MovableStash((*net.parameters(), *net.buffers()), torch.device("cpu"))
    torch.manual_seed(2)
    with stash:
        result = net(given).square()
    stash.keep((given,))
    return result, stash


def sent(stash: MovableStash) -> list[torch.Tensor]:
    """Copies of all bytes, as the partner has them."""
    copies = [part.clone() for part in stash.bytes_to_send()]
    stash.leave()
    return copies


def come_back(stash: MovableStash, copies: Sequence[torch.Tensor]) -> None:
    fill(stash.come_back(), copies)


def fill(rooms: Sequence[torch.Tensor], copies: Sequence[torch.Tensor]) -> None:
    for room, copy in zip(rooms, copies, strict=True):
        room.copy_(copy)


def test_gradients_are_those_of_stash_that_has_stayed():
    plain, moved = model(), model()
    given = received()
    torch.manual_seed(2)
    expected = gradients(plain, given, plain(given).square())
    given = received()
    result, stash = forward(moved, given)
    come_back(stash, sent(stash))
    found = gradients(moved, given, result)
    assert len(found) == len(expected) == 7
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_backward_reads_the_bytes_that_came_back():
    net, given = model(), received()
    result, stash = forward(net, given)
    copies = sent(stash)
    come_back(stash, [torch.zeros_like(copy) for copy in copies])
    assert not gradients(net, given, result)[1].any()


def test_no_storage_of_the_stash_is_alive_while_it_is_away():
    net, given = model(), received()
    result, stash = forward(net, given)
    parts = stash.bytes_to_send()
    alive = [weakref.ref(part.untyped_storage()) for part in parts]
    assert sum(part.nbytes for part in parts) > 5 * given.nbytes
    del parts
    assert all(one() is not None for one in alive)
    result = result.sum()
    stash.leave()
    assert [one() for one in alive] == [None] * len(alive)
    assert given.numel() == 0


def test_parameters_and_buffers_stay():
    net, given = model(), received()
    _, stash = forward(net, given)
    staying = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers())}
    assert staying.isdisjoint(p.untyped_storage().data_ptr() for p in stash.bytes_to_send())


def test_after_the_backward_only_the_received_tensor_is_left():
    net, given = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()).double(), received()
    result, stash = forward(net, given)
    copies = sent(stash)
    rooms = stash.come_back()
    fill(rooms, copies)
    alive = [weakref.ref(room.untyped_storage()) for room in rooms]
    del rooms
    gradients(net, given, result)
    left = [one() for one in alive if one() is not None]
    assert [storage.data_ptr() for storage in left if storage] == [given.data_ptr()]


@pytest.mark.parametrize("is_saved", [True, False])
def test_a_received_tensor_moves_even_if_no_operation_saves_it(is_saved: bool):
    given = received()
    stash = MovableStash((), torch.device("cpu"))
    with stash:
        result = given * given if is_saved else given + 1
    stash.keep((given,))
    (copy,) = sent(stash)
    assert copy.nbytes == ROWS * WIDTH * 8
    come_back(stash, [copy])
    result.sum().backward()
    assert given.grad is not None
    assert torch.equal(given.grad, 2 * received() if is_saved else torch.ones_like(given))
