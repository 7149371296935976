"""State units: equal parts of flat parameters, whole only while they are needed."""

import pytest
import torch
from torch import nn

from autopart.runtime.measuring.live_bytes import LiveStorages
from autopart.runtime.sharding.shard_groups import LonePlace
from autopart.runtime.update.state_units import StateUnit
from tests.support.runtime.shard_threads import ThreadPlaces


def parameters() -> dict[str, nn.Parameter]:
    """Nine elements, which no two places share equally."""
    # A generator of its own: threads make their parameters side by side.
    own = torch.Generator().manual_seed(0)
    sizes = {"a": (2, 3), "b": (3,)}
    return {n: nn.Parameter(torch.randn(size, generator=own)) for n, size in sizes.items()}


def loss(own: dict[str, nn.Parameter], x: torch.Tensor) -> torch.Tensor:
    return (x @ own["a"] * own["b"]).square().sum()


@pytest.mark.parametrize("places", [2, 4])
@pytest.mark.parametrize("keeps", [False, True])
def test_parts_of_gradients_are_those_of_the_sum(places: int, keeps: bool) -> None:
    group, plain, found = ThreadPlaces(places), parameters(), dict[int, dict[str, torch.Tensor]]()
    batch = torch.randn(places, 5, 2)
    for part in batch:
        loss(plain, part).backward()

    def work(place: int) -> None:
        own = parameters()
        unit = StateUnit(own, group, keeps_weights=keeps)
        unit.gather()
        made = loss(own, batch[place])
        unit.release()
        unit.gather()
        unit.open()
        made.backward()
        unit.release()
        unit.close()
        grads = {n: p.grad for n, p in unit.parts.items() if p.grad is not None}
        found[place] = {n: unit.whole_of(n, grad) for n, grad in grads.items()}
        assert all(p.grad is None for p in own.values())

    group.ranks.run(work)
    for of_place in found.values():
        for name, parameter in plain.items():
            assert parameter.grad is not None
            torch.testing.assert_close(of_place[name], parameter.grad)


@pytest.mark.parametrize("keeps", [False, True])
def test_stepped_parts_make_the_weights_that_the_next_gather_gives(keeps: bool) -> None:
    group, plain = ThreadPlaces(2), parameters()

    def work(place: int) -> None:
        own = parameters()
        unit = StateUnit(own, group, keeps_weights=keeps)
        with torch.no_grad():
            for part in unit.parts.values():
                part.mul_(3.0)
        unit.written()
        unit.gather()
        for name, parameter in plain.items():
            assert torch.equal(own[name], parameter * 3.0)
            assert torch.equal(unit.whole_of(name, unit.parts[name].detach()), parameter * 3.0)
            assert torch.equal(unit.own_of(name, parameter * 3.0), unit.parts[name])

    group.ranks.run(work)


def test_a_parameter_without_a_gradient_keeps_none() -> None:
    own = parameters()
    unit = StateUnit(own, LonePlace(2), keeps_weights=True)
    unit.open()
    own["a"].sum().backward()
    assert [part.shape for part in unit.close()] == [torch.Size([5])]
    assert unit.parts["b"].grad is None


def test_weights_have_memory_only_while_they_are_gathered() -> None:
    own = {"w": nn.Parameter(torch.zeros(1000))}
    unit, live = StateUnit(own, LonePlace(4), keeps_weights=False), LiveStorages()
    assert own["w"].untyped_storage().nbytes() == 0 and unit.parts["w"].numel() == 250
    with live:
        unit.gather()
        assert live.live_bytes == 4000
        unit.release()
    assert live.live_bytes == 0 and live.peak_bytes == 4000
