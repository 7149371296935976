"""Operations on the whole model's gradients: clip by the global norm, undo a loss scale."""

from collections.abc import Iterable

import torch

from autopart.runtime.engine.rank_executor import RankExecutor

_TINY = 1e-6
"""Added to the norm, as in torch's own clipping."""


def clip(executor: RankExecutor, max_norm: float) -> torch.Tensor:
    """Scale all gradients so that the global norm is at most `max_norm`. Collective over all ranks.

    Returns the global norm before, see `global_norm`. Equal copies of a gradient stay equal.
    """
    norm = global_norm(executor)
    factor = torch.clamp(max_norm / (norm + _TINY), max=1.0)
    for gradient in _gradients(executor, executor.parameters).values():
        gradient.mul_(factor.to(gradient.dtype))
    return norm


def global_norm(executor: RankExecutor) -> torch.Tensor:
    """Euclidean norm over the whole model's gradients, in float64. Collective over all ranks.

    All gradients count as one vector, in which copies of a parameter count once.
    """
    total, shards = torch.zeros((), dtype=torch.float64, device=executor.device), executor.shards
    for name, gradient in _gradients(executor, executor.owned).items():
        square = torch.linalg.vector_norm(gradient, dtype=_wide(gradient)).double().square()
        total += square if shards is None else square * shards.norm_share(name)
    return executor.sum_over_processes(total).sqrt()


def unscale(executor: RankExecutor, scale: float) -> bool:
    """Divide all gradients by `scale`; return whether all are finite. Collective over all ranks."""
    bad = torch.zeros((), dtype=torch.int32, device=executor.device)
    for gradient in _gradients(executor, executor.parameters).values():
        gradient.div_(scale)
        bad += torch.isfinite(gradient).logical_not().any().int()
    return executor.sum_over_processes(bad).item() == 0


def _gradients(executor: RankExecutor, names: Iterable[str]) -> dict[str, torch.Tensor]:
    found = ((name, executor.parameters[name].grad) for name in names)
    return {name: gradient for name, gradient in found if gradient is not None}


def _wide(gradient: torch.Tensor) -> torch.dtype:
    return torch.float64 if gradient.dtype == torch.float64 else torch.float32
