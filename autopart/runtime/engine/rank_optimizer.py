"""One rank's optimizer, with its state placed by the plan: on the host, or in ZeRO shards."""

from torch import nn

from autopart.errors import UsageError
from autopart.records.plan import Plan
from autopart.records.training import has_master_copies
from autopart.runtime.engine.rank_executor import RankExecutor
from autopart.runtime.engine.stage import stage_parameters
from autopart.runtime.transforms.host_copies import host_copies_for
from autopart.runtime.update.optimizer import Optimizer
from autopart.runtime.update.zero_shards import ZeroSharding

_WHOLE_MATRICES = ("adafactor",)
"""Optimizers whose step for one element depends on other elements in its matrix."""


def rank_optimizer(
    plan: Plan, executor: RankExecutor, name: str, lr: float | None, *, scatters: bool = False
) -> Optimizer:
    """The optimizer called `name` for all parameters on the rank; `lr` None means its default.

    With `scatters` and ZeRO-1, from now on the executor sums only the elements that this optimizer
    steps. Then nobody else may read the gradients.

    Raises UsageError for Adafactor with ZeRO-1, because it cannot step shards.
    """
    if plan.training.zero1 and name in _WHOLE_MATRICES:
        raise UsageError(
            f"optimizer {name}: with ZeRO-1 a rank steps a part of each matrix, and {name} needs "
            "whole matrices; take adamw or sgd-momentum, or solve without --zero1"
        )
    hosted = _hosted(plan, executor)
    sharding = ZeroSharding(executor.shared if plan.training.zero1 else ())
    if scatters and plan.training.zero1:
        executor.scatter_sums(sharding)
    optimizer = Optimizer(
        name,
        list(executor.parameters.values()),
        lr,
        sharding=sharding,
        hosted=hosted,
        host_copies=host_copies_for(executor.device),
        has_masters=has_master_copies(plan.training),
    )
    optimizer.written = executor.written
    return optimizer


def _hosted(plan: Plan, executor: RankExecutor) -> list[nn.Parameter]:
    """The parameters whose state lies on the host. Of stages that share one, the first says where."""
    first: dict[nn.Parameter, int] = {}
    for index, program in sorted(executor.programs.items()):
        for name in stage_parameters(program):
            first.setdefault(executor.parameters[name], index)
    return [each for each, index in first.items() if plan.stages[index].optimizer_on_host]
