"""Gradient sums under ZeRO-1, on the ranks of a pool."""

from typing import NamedTuple
from unittest import mock

import torch
from torch import distributed, nn

from autopart.runtime.update.gradient_sum import GradientSum, Holders
from autopart.runtime.update.scattered_sum import ScatteredSum
from autopart.runtime.update.zero_shards import ZeroSharding

Values = dict[str, list[float] | None]


class Scattered(NamedTuple):
    """One rank's gradients, after the sum and once they are whole."""

    own: Values
    """Elements that this rank steps; NaN in place of the others."""
    whole: Values
    all_reduced: int
    """Elements of gradients that went through an all-reduce."""


def scattered_sums(rank: int) -> Scattered:
    """Gradients of ranks 0, 1, ... are 1, 10, 100, ... times a parameter's place."""
    size = distributed.get_world_size()
    names = ("a", "b", "late", "unused", "across")
    parameters = {name: nn.Parameter(torch.zeros(3)) for name in names}
    parameters["across"] = nn.Parameter(torch.zeros(2, 3).t())
    for place, (name, parameter) in enumerate(parameters.items(), 1):
        # One rank alone has a gradient for `late`, and none has one for `unused`.
        if name != "unused" and (name != "late" or rank == size - 1):
            parameter.grad = torch.full_like(parameter, place * 10.0**rank)
    holders = [Holders(tuple(range(size)), names)]
    whole = GradientSum(holders, parameters, rank)
    sharding = ZeroSharding(whole.shared)
    sums, summed, all_reduce = ScatteredSum(whole, sharding), list[int](), distributed.all_reduce

    def counted(tensor: torch.Tensor, **options: object) -> object:
        summed.append(tensor.numel() if tensor.is_floating_point() else 0)
        return all_reduce(tensor, **options)  # pyright: ignore[reportArgumentType, reportUnknownVariableType]

    with mock.patch.object(distributed, "all_reduce", counted):
        sums.run()
    own: Values = {}
    ranges = {id(s.parameter): s for s in sharding.own_ranges(list(parameters.values()))}
    for name, parameter in parameters.items():
        gradient, shard = parameter.grad, ranges.get(id(parameter))
        own[name] = None if gradient is None else [float("nan")] * parameter.numel()
        if gradient is not None and shard is not None:
            own[name][shard.start : shard.stop] = gradient.reshape(-1)[
                shard.start : shard.stop
            ].tolist()  # pyright: ignore[reportOptionalSubscript]
    sums.complete()
    made = {
        n: None if p.grad is None else p.grad.reshape(-1).tolist() for n, p in parameters.items()
    }
    return Scattered(own, made, sum(summed))
