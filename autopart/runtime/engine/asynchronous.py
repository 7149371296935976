"""PipeDream and PipeDream-2BW: one forward and one backward in turn, updates without a flush.

    rank 0  0F0 0F1  .  0B0 u0 0F2 0B1 u1 0F3 0B2 u2 …
    rank 1   .  1F0 1B0 u0 1F1 1B1 u1 1F2 1B2 u2 …

The orders are 1F1B over all microbatches in the run. On each rank an update follows the last
backward among its microbatches. Updates cover one microbatch (PipeDream) or several (2BW). A
microbatch runs backward with the weights from its forward; `schedules.named.asynchronous` numbers
these versions. Update n changes the newest weights, with gradients that its microbatches computed
at older weights.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import distributed

from autopart.errors import PlanError, ScheduleError
from autopart.records.plan import Plan, stage_ranks
from autopart.records.plan_degrees import check_one_gpu_per_rank
from autopart.runtime.engine.buffers import Buffers, Stages, Tensors
from autopart.runtime.engine.executor import microbatches_of
from autopart.runtime.engine.program_loop import ProgramLoop
from autopart.runtime.engine.rank_executor import RankExecutor, RankPart
from autopart.runtime.engine.stage import Leaves
from autopart.runtime.engine.transfers import BETWEEN_RANKS, with_other_rank
from autopart.runtime.engine.weight_versions import WeightVersions
from autopart.runtime.measuring.clock import Mark
from autopart.runtime.measuring.step_trace import Marks, begin_marks
from autopart.runtime.update.gradient_sum import Holders
from autopart.schedules.actions import Action, StageRanks
from autopart.schedules.catalogue import make_schedule
from autopart.schedules.messages import Orders, Program, Together, Update, write_messages
from autopart.schedules.named.asynchronous import (
    PIPEDREAM,
    TWO_BUFFERED,
    Asynchronous,
    Setting,
    check_setting,
    weight_version,
)

RUNNABLE = {kind.name: kind for kind in (PIPEDREAM, TWO_BUFFERED)}
"""Asynchronous schedules that can run; others are only priced."""


class AsynchronousRules(NamedTuple):
    """An asynchronous schedule, and its setting on a plan's stages."""

    kind: Asynchronous
    setting: Setting


def rules_of(plan: Plan, name: str) -> AsynchronousRules:
    """The schedule called `name` on the plan's stages.

    An update takes one microbatch in PipeDream, and the plan's microbatches in 2BW. Raises
    PlanError if the schedule cannot run, or not on these stages.
    """
    if name not in RUNNABLE:
        raise PlanError(f"asynchronous schedule '{name}' cannot run; known: {', '.join(RUNNABLE)}")
    check_one_gpu_per_rank(plan, "an asynchronous run")
    kind = RUNNABLE[name]
    ranks = stage_ranks(plan)
    counts = [len(on) for on in ranks]
    if len({rank for on in ranks for rank in on}) < sum(counts):
        raise PlanError(
            f"{kind.name} runs one stage per rank, and this plan has ranks with several; "
            "solve with --schedule 1f1b"
        )
    if kind.every_microbatch and max(counts) > 1:
        raise PlanError(
            f"{kind.name} updates after every microbatch, so it needs stages without replicas, and "
            f"stages have up to {max(counts)}; solve with --replicas 1, or take {TWO_BUFFERED.name}"
        )
    microbatches_per_update = 1 if kind.every_microbatch else plan.num_microbatches
    setting = Setting(len(ranks), microbatches_per_update)
    try:
        check_setting(kind, setting._replace(num_stages=sum(counts)))
    except ScheduleError as error:
        raise PlanError(f"{error}; solve with a larger --global-batch") from error
    return AsynchronousRules(kind, setting)


def check_no_shared(rules: AsynchronousRules, holders: Sequence[Holders]) -> None:
    """Raise PlanError if stages with unequal delays would sum gradients for one parameter."""
    kind = rules.kind
    if kind.every_microbatch and holders:
        name, on = holders[0].names[0], holders[0].ranks
        raise PlanError(
            f"{kind.name} gives each stage another weight version, and '{name}' is tied across "
            f"stages on ranks {', '.join(map(str, on))}; take {TWO_BUFFERED.name}, solve with "
            "--same-stage for its layers, or untie it"
        )


class UpdateMarks(NamedTuple):
    """Clock marks for one update on one rank."""

    begin: Mark
    """Start of the gradient sum."""
    summed: Mark
    """End of the gradient sum, start of the optimizer's step."""
    done: Mark
    """End of the optimizer's step."""


class TrainingRecord(NamedTuple):
    """One rank's record of an asynchronous run."""

    losses: Mapping[int, torch.Tensor]
    """Loss by microbatch, for microbatches whose last stage ran on this rank."""
    versions: Mapping[int, int]
    """Weight version by microbatch: updates that this rank's weights had seen in its forward."""
    most_versions: int
    """Most weight versions in memory at once, the newest included."""
    marks: Marks
    updates: tuple[UpdateMarks, ...]


class AsynchronousExecutor(RankExecutor):
    """Runs one rank's stage under a schedule without flushes."""

    def __init__(
        self,
        part: RankPart,
        stages: Stages,
        rules: AsynchronousRules,
        ranks: StageRanks,
        together: Together,
    ) -> None:
        """`together` maps each rank to the ranks that sum gradients with it."""
        super().__init__(part)
        self._stages = dict(stages)
        self._rules = rules
        self._ranks = ranks
        self._together = together

    @property
    def microbatches_per_update(self) -> int:
        """Microbatches that one update takes, over all replicas."""
        return self._rules.setting.num_microbatches

    def microbatches(self, num_updates: int) -> tuple[int, ...]:
        """This rank's microbatches in a run with `num_updates` updates, counted through the run."""
        return microbatches_of(self._program(num_updates))

    def train(
        self, load: Callable[[int], Leaves], num_updates: int, step: Callable[[], None]
    ) -> TrainingRecord:
        """Run from the first forward to the last update, without a flush in between.

        `load` returns the tensors that this rank's stage reads for a microbatch; it is called right
        before the forward. `step` applies each parameter's ``grad`` and clears it. The gradients
        belong to the mean loss over the update's microbatches. Raises LostRank if another rank is
        gone.
        """
        program, watcher = self._program(num_updates), self._part.watcher
        n = self.microbatches_per_update
        # The schedule fixes the weight version for each microbatch in advance.
        seen = {m: self._version(m) for m in microbatches_of(program)}
        versions = [
            WeightVersions(stage.program.module, seen.values()) for stage in self._stages.values()
        ]
        for stage in self._stages.values():
            stage.chunks = n * num_updates
        buffers = Buffers(self._stages, _OnDemand(load), 1.0 / n, BETWEEN_RANKS)
        marks, updates = begin_marks(self._clock, self.device), list[UpdateMarks]()
        losses: dict[int, torch.Tensor] = {}

        def compute(action: Action, needed: Tensors) -> None:
            version, (own,) = seen[action.microbatch], versions
            # Forward and backward both run with the version that the forward started with.
            own.run(version, lambda: buffers.compute(action, needed))
            if action.op == "B":
                own.done(version)
            elif buffers.loss is not None:
                losses[action.microbatch], buffers.loss = buffers.loss, None

        def update(event: Update) -> None:
            # Step 1: sum the update's gradients over replicas and tied copies.
            begin = self._clock.mark()
            watcher.waiting(f"the sum of gradients of update {event.number}", None)
            with_other_rank(self._part.sums.run, None, "the sum of gradients")
            summed = self._clock.mark()
            # Step 2: step the optimizer, which makes a new weight version.
            watcher.working(f"update {event.number}")
            for own in versions:
                own.update(step)
            updates.append(UpdateMarks(begin, summed, self._clock.mark()))

        ProgramLoop(buffers, marks, self._clock, watcher).run(program, compute, update)
        most = max((own.most for own in versions), default=0)
        return TrainingRecord(losses, seen, most, marks, tuple(updates))

    def _version(self, microbatch: int) -> int:
        (stage,) = self._stages
        return weight_version(self._rules.kind, self._rules.setting, stage, microbatch)

    def _program(self, num_updates: int) -> Program:
        orders = asynchronous_orders(self._ranks, self._rules, num_updates)
        programs = write_messages(
            orders, self._ranks, self._together, receives_first=self.device.type == "cpu"
        )
        return programs[distributed.get_rank()]


def asynchronous_orders(ranks: StageRanks, rules: AsynchronousRules, num_updates: int) -> Orders:
    """1F1B over all microbatches in the run, with updates.

    On each rank an update follows the last backward among the update's microbatches.
    """
    n = rules.setting.num_microbatches
    orders = make_schedule("1f1b", ranks, n * num_updates)
    return tuple(_with_updates(order, n) for order in orders)


def _with_updates(order: Sequence[Action], n: int) -> tuple[Action | Update, ...]:
    last = {action.microbatch // n: action for action in order if action.op == "B"}
    events: list[Action | Update] = []
    for action in order:
        events.append(action)
        number = action.microbatch // n
        if last[number] == action:
            events.append(Update(number))
    return tuple(events)


class _OnDemand(dict[int, Leaves]):
    """Batch tensors by microbatch, read when they are needed and not kept."""

    def __init__(self, load: Callable[[int], Leaves]) -> None:
        super().__init__()
        self._load = load

    def __missing__(self, microbatch: int) -> Leaves:
        return self._load(microbatch)
