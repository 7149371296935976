"""Live bytes, operation by operation."""

import torch

from autopart.runtime.measuring.live_bytes import LiveStorages


def test_the_peak_is_the_most_that_was_alive_at_once() -> None:
    with LiveStorages() as live:
        a = torch.zeros(256)
        b = a + 1
        del a
        c = b + 1
        del b
        assert (live.live_bytes, live.peak_bytes) == (1024, 2048)
        live.reset_peak()
        assert live.peak_bytes == 1024
        del c
    assert live.live_bytes == 0


def test_views_and_operations_in_place_need_nothing_new() -> None:
    with LiveStorages() as live:
        a = torch.zeros(256)
        b = a.view(16, 16)[3:5]
        b.add_(1)
        assert live.peak_bytes == 1024
        del a
        assert live.live_bytes == 1024, "the view keeps the whole storage alive"


def test_ignored_storages_do_not_count() -> None:
    a = torch.zeros(256)
    with LiveStorages() as live:
        live.ignore(a)
        a.mul_(2.0)
        a.view(-1)
        assert live.peak_bytes == 0


def test_a_backward_frees_its_stash_as_it_goes() -> None:
    x = torch.randn(256, requires_grad=True)
    with LiveStorages() as live:
        y = x.exp().exp().exp().sum()
        kept = live.live_bytes
        assert kept == 3 * 1024 + 4
        y.backward()
        del y
        assert live.live_bytes == 1024, "the gradient of x is all that is left"


def test_meta_tensors_count_as_real_ones_do() -> None:
    peaks: list[int] = []
    for device in ("cpu", "meta"):
        x = torch.ones(32, 32, device=device, requires_grad=True)
        with LiveStorages() as live:
            (x @ x).relu().sum().backward()
            peaks.append(live.peak_bytes)
    assert peaks[0] == peaks[1] > 0
