"""Gradient sums beside a backward, on the ranks of a pool."""

import torch
from torch import distributed

from autopart.runtime.update.gradient_sum import GradientSum, Holders
from autopart.runtime.update.overlapped_sum import OverlappedSum, StageCopies

Gradients = list[dict[str, list[float] | None]]


def sums_of_steps(rank: int, idle: int = -1) -> Gradients:
    """Each step's gradients of two ranks, whose factors are 1 and 10; rank `idle` runs no backward.

    `twice` gets two parts, one before and one after `once`. `silent` is changed without autograd.
    Nothing makes `unused`, and `tied` is on another stage too.
    """
    names = ("twice", "once", "silent", "unused", "tied")
    parameters = {name: torch.nn.Parameter(torch.ones(2)) for name in names}
    whole = GradientSum([Holders((0, 1), names)], parameters, rank)
    stages = [StageCopies(0, names, (0, 1)), StageCopies(1, ("tied",), (0, 1))]
    sums = OverlappedSum(whole, parameters, stages, bucket_bytes=8)
    found: Gradients = []
    for _ in range(3):
        if rank != idle:
            with sums.beside(0):
                _backward(parameters, 10.0**rank)
        distributed.barrier()
        sums.run()
        found.append(_taken(parameters))
    return found


def _taken(parameters: dict[str, torch.nn.Parameter]) -> dict[str, list[float] | None]:
    """The gradients, which are cleared."""
    found = {n: None if p.grad is None else p.grad.tolist() for n, p in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    return found


def _backward(parameters: dict[str, torch.nn.Parameter], factor: float) -> None:
    twice, silent = parameters["twice"], parameters["silent"]
    (factor * twice).sum().backward()
    (2 * factor * (parameters["once"] + parameters["tied"])).sum().backward()
    (3 * factor * twice).sum().backward()
    (5 * factor * silent).sum().backward()
    with torch.no_grad():
        assert silent.grad is not None
        silent.grad.add_(factor)


def sums_of_varying_steps(rank: int, *, overlaps: bool) -> Gradients:
    """Each step's gradients of two ranks, whose factors are 1 and 10. Steps and ranks use other parameters.

    Both use `a` in the first step, and `b` in the third. In the second, rank 0 uses `a` and rank 1 uses `b`.
    """
    parameters = {name: torch.nn.Parameter(torch.ones(2)) for name in ("a", "b")}
    sums = GradientSum([Holders((0, 1), ("a", "b"))], parameters, rank, use_varies=True)
    if overlaps:
        stages = [StageCopies(0, ("a", "b"), (0, 1))]
        sums = OverlappedSum(sums, parameters, stages, bucket_bytes=8)
    found: Gradients = []
    for names in ("aa", "ab", "bb"):
        with sums.beside(0):
            (10.0**rank * parameters[names[rank]]).sum().backward()
        sums.run()
        found.append(_taken(parameters))
    return found
