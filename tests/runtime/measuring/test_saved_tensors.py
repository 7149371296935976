"""Autograd's saved tensors, counted by storage."""

import gc
import weakref

import torch

from autopart.runtime.measuring.saved_tensors import SavedStorages, storage_key, storage_keys


def _kept(saved: SavedStorages) -> list[int]:
    return sorted(saved.kept().values())


def test_a_storage_that_many_operations_save_counts_once() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    with SavedStorages() as saved:
        y = x * 2.0
        z = (y * y).sum() + (y.view(8, 4) * y.view(8, 4)).sum() + y.exp().sum()
    assert _kept(saved) == [128, 128], "y, which three products save, and the result of exp"
    assert z.requires_grad


def test_a_view_counts_with_the_whole_storage_below_it() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    with SavedStorages() as saved:
        rows = (x + 1.0)[:2]
        product = rows * rows
    assert _kept(saved) == [128]
    assert product.nbytes == 64


def test_storages_that_no_graph_keeps_any_more_do_not_count() -> None:
    x = torch.randn(4, requires_grad=True)
    with SavedStorages() as saved:
        x.exp()
        y = x.sigmoid()
    assert list(saved.kept()) == [storage_key(y)]
    del y
    assert saved.kept() == {}


def test_watching_keeps_no_tensor_alive() -> None:
    x = torch.randn(4, requires_grad=True)
    gc.disable()
    try:
        with SavedStorages() as saved:
            y = x.exp()
        graph = weakref.ref(y)
        del y
        assert graph() is None, "an output that its own operation saves must not keep itself alive"
        assert saved.kept() == {}
    finally:
        gc.enable()


def test_backward_works_on_watched_tensors() -> None:
    x = torch.randn(4, requires_grad=True)
    with SavedStorages():
        y = x.exp().sum()
    y.backward()
    assert torch.equal(x.grad, x.detach().exp())


def test_meta_tensors_have_storages_of_their_own() -> None:
    x = torch.empty(4, 8, device="meta", requires_grad=True)
    with SavedStorages() as saved:
        y = (x * 2.0).tanh() @ torch.empty(8, 2, device="meta", requires_grad=True)
    assert sorted(saved.kept().values()) == [64, 128], "tanh's result, and the second matrix"
    assert len(storage_keys([x, y, x.view(8, 4)])) == 2
