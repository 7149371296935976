"""The optimizer of one rank, with its state where the plan has it: on the host, or shared out."""

from autopart.errors import UsageError
from autopart.plan import Plan
from autopart.runtime.execution.host_link import host_link
from autopart.runtime.execution.optimizer import Optimizer
from autopart.runtime.execution.pieces import Shares
from autopart.runtime.execution.rank_executor import RankExecutor
from autopart.runtime.execution.stage import stage_parameters
from autopart.training import has_master_copies

_WHOLE_MATRICES = ("adafactor",)
"""Optimizers whose step of an element depends on others of its matrix."""


def rank_optimizer(plan: Plan, executor: RankExecutor, name: str, lr: float | None) -> Optimizer:
    """The optimizer called `name` for all parameters of the rank.

    Raises UsageError where the plan shares out the state of one that cannot do with a part of it.
    """
    if plan.training.zero1 and name in _WHOLE_MATRICES:
        raise UsageError(
            f"optimizer {name}: with ZeRO-1 a rank steps a part of a matrix, of which {name} needs the "
            "whole; take adamw or sgd-momentum, or solve without --zero1"
        )
    hosted = [
        parameter
        for index, program in executor.programs.items()
        if plan.stages[index].optimizer_on_host
        for parameter in stage_parameters(program).values()
    ]
    return Optimizer(
        name,
        list(executor.parameters.values()),
        lr,
        shares=Shares(executor.shared if plan.training.zero1 else ()),
        hosted=hosted,
        link=host_link(executor.device),
        has_masters=has_master_copies(plan.training),
    )
