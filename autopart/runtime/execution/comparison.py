"""A run's check from start to end: the plain model's training on rank 0, what each rank gives to be
compared with it and when, and what is said of it.

A run without flushes is held against the plain model trained with the same older weights: its stages
are never at the same update, so what its first update was made of is kept until the end.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from autopart.plan import Plan
from autopart.run_result import CheckResult
from autopart.runtime.execution import check as checks
from autopart.runtime.execution.asynchronous import Way, way_of
from autopart.runtime.execution.check import Check
from autopart.runtime.execution.microbatches import Microbatches
from autopart.runtime.execution.optimizer import Optimizer
from autopart.runtime.execution.rank_executor import RankExecutor
from autopart.runtime.execution.reference import Tensors, copies, run_reference
from autopart.runtime.execution.run_settings import RunSettings, optimizer_name
from autopart.runtime.models.model import ModelSource, build_training_model
from autopart.schedules.asynchronous import weight_version
from autopart.training import has_master_copies


class Comparison:
    """One rank's part of a check; every rank must call the same at the same points."""

    def __init__(
        self,
        plan: Plan,
        check: Check | None,
        executor: RankExecutor,
        waiting: Callable[[str, None], None],
    ) -> None:
        """`check` is rank 0's; `waiting` is told what the rank waits for."""
        self._check, self._executor, self._waiting = check, executor, waiting
        self._has_buffers = all(len(stage.ranks) == 1 for stage in plan.stages)
        self._kept: list[Tensors] = []

    def gradients(self) -> None:
        """After the first step's backward."""
        self._waiting("the comparison of gradients", None)
        checks.compare_gradients(self._check, self._gradients())

    def first_update(self) -> None:
        """After the first step's update."""
        self._waiting("the comparison of parameters", None)
        checks.compare_first_update(self._check, self._executor.parameters)

    def keep(self, update: int, step: Callable[[], None]) -> None:
        """Make an update, and keep what `last` compares of the first."""
        if update == 0:
            self._kept.append(copies(self._gradients()))
        step()
        if update == 0:
            self._kept.append(copies(self._executor.parameters))

    def last(self) -> None:
        """After the last step."""
        self._waiting("the comparison of parameters", None)
        if self._kept:
            gradients, first = self._kept
            checks.compare_gradients(self._check, gradients)
            checks.compare_first_update(self._check, first)
        checks.compare_parameters(self._check, self._executor.parameters)
        if self._has_buffers:
            checks.compare_buffers(self._check, self._executor.buffers)

    def outcome(
        self, losses: Sequence[float], dropouts: int, random_operations: Sequence[str]
    ) -> CheckResult | None:
        """On rank 0, of the losses of all updates; raises RunError where anything differs."""
        if self._check is None:
            return None
        notes: list[str] = []
        if self._kept:
            notes.append("the plain model was trained with the same older weights")
        if dropouts:
            notes.append(f"dropout was off in both models ({dropouts} operations)")
        if not self._has_buffers:
            notes.append("buffers were not compared: each replica sees its own microbatches only")
        return checks.outcome(self._check, losses, dropouts, random_operations, notes)

    def _gradients(self) -> dict[str, torch.Tensor]:
        named = self._executor.parameters.items()
        return {name: p.grad for name, p in named if p.grad is not None}


def train_plain(
    plan: Plan,
    settings: RunSettings,
    source: ModelSource,
    data: Microbatches,
    device: str,
    stages: Mapping[str, int],
    note: Callable[[str], None],
) -> Check:
    """Train the plain model as the run is to train it; `stages` are those of the parameters."""
    size, name = plan.num_microbatches, settings.asynchronous
    way = None if name is None else way_of(plan, name)
    to_an_update = size if way is None else way.setting.num_microbatches
    updates, dtype = settings.steps * size // to_an_update, plan.origin.dtype
    autocast = torch.bfloat16 if settings.autocast else None
    make = partial(
        Optimizer,
        optimizer_name(settings),
        lr=settings.lr,
        has_masters=has_master_copies(plan.training),
    )
    reference = run_reference(
        build_training_model(source, dtype=dtype, device=device, seed=settings.seed),
        lambda update, m: data.batch(*divmod(update * to_an_update + m, size), device),
        steps=updates,
        num_microbatches=to_an_update,
        optimizer=make,
        note=note,
        autocast=autocast,
        version=None if way is None else partial(_version, way, stages),
    )
    optimizer = make([])
    return Check(
        reference=reference,
        dtype=dtype if autocast is None else "bfloat16",
        steps=updates,
        optimizer=optimizer.name,
        lr=optimizer.lr,
        is_delayed=way is not None,
    )


def _version(way: Way, stages: Mapping[str, int], name: str, microbatch: int) -> int:
    """Parameters that no stage holds are in no update."""
    return weight_version(way.kind, way.setting, stages.get(name, 0), microbatch)
