"""Runs without flushes: one forward and one backward in turn, updates in between.

    rank 0  0F0 0F1  .  0B0 u0 0F2 0B1 u1 0F3 0B2 u2 …
    rank 1   .  1F0 1B0 u0 1F1 1B1 u1 1F2 1B2 u2 …

The orders are 1F1B over all microbatches in the run. On each rank an update follows the last
backward among its microbatches. Updates cover one microbatch (PipeDream) or several (2BW). Under
PipeDream and 2BW a microbatch runs backward with the weights from its forward;
`schedules.named.asynchronous` numbers these versions. SpecTrain, XPipe and PipeOptim predict
weights instead (`predicted_weights`). Update n changes the newest weights, with gradients that its
microbatches computed at older or predicted weights. WPipe has two stages on each rank and orders of
its own (`schedules.named.wpipe`); each stage has its own updates.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import distributed

from autopart.errors import UsageError
from autopart.runtime.engine.asynchronous_rules import AsynchronousRules
from autopart.runtime.engine.buffers import Buffers, Stages, Tensors
from autopart.runtime.engine.executor import microbatches_of
from autopart.runtime.engine.predicted_weights import Distances, Predict, PredictedWeights
from autopart.runtime.engine.program_loop import ProgramLoop
from autopart.runtime.engine.rank_executor import RankExecutor, RankPart
from autopart.runtime.engine.stage import Leaves
from autopart.runtime.engine.transfers import BETWEEN_RANKS, with_other_rank
from autopart.runtime.engine.weight_versions import StageWeights, WeightVersions
from autopart.runtime.measuring.clock import Mark
from autopart.runtime.measuring.step_trace import Marks, begin_marks
from autopart.schedules.actions import Action, StageRanks
from autopart.schedules.asynchronous_kind import weight_version
from autopart.schedules.catalogue import make_schedule
from autopart.schedules.messages import Orders, Program, Together, Update, write_messages
from autopart.schedules.named.asynchronous import WPIPE
from autopart.schedules.named.wpipe import wpipe_orders


class UpdateMarks(NamedTuple):
    """Clock marks for one update of one stage on one rank."""

    number: int
    """The update, counted from 0."""
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
    versions: Mapping[int, Mapping[int, int]]
    """By stage and microbatch the weight version: updates that the weights had seen in the
    forward."""
    most_versions: Mapping[int, int]
    """By stage the most weight versions in memory at once, the newest included."""
    marks: Marks
    updates: tuple[UpdateMarks, ...]
    """Marks in the sequence of the updates."""


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
        self,
        load: Callable[[int], Leaves],
        num_updates: int,
        step: Callable[[int], None],
        predict: Predict | None = None,
    ) -> TrainingRecord:
        """Run from the first forward to the last update, without a flush in between.

        `load` returns the tensors that this rank's stage reads for a microbatch; it is called right
        before the forward. `step` takes the update's number; it applies each parameter's ``grad`` and
        clears it. The gradients belong to the mean loss over the update's microbatches; only the
        updated stage has some. `predict` is for schedules that
        predict weights. Raises UsageError if it is missing there, LostRank if another rank is gone.
        """
        program, watcher = self._program(num_updates), self._part.watcher
        n = self.microbatches_per_update
        weights = {
            index: self._weights(index, microbatches_of(program), predict) for index in self._stages
        }
        for stage in self._stages.values():
            stage.chunks = n * num_updates
        buffers = Buffers(self._stages, _OnDemand(load), 1.0 / n, BETWEEN_RANKS)
        marks, updates = begin_marks(self._clock, self.device), list[UpdateMarks]()
        losses: dict[int, torch.Tensor] = {}

        def compute(action: Action, needed: Tensors) -> None:
            weights[action.stage].run(action, lambda: buffers.compute(action, needed))
            if buffers.loss is not None:
                losses[action.microbatch], buffers.loss = buffers.loss, None

        def update(event: Update) -> None:
            # Step 1: sum the update's gradients over replicas and tied copies.
            begin = self._clock.mark()
            watcher.waiting(f"the sum of gradients of update {event.number}", None)
            with_other_rank(self._part.sums.run, None, "the sum of gradients")
            summed = self._clock.mark()
            # Step 2: step the optimizer, which makes a new weight version.
            watcher.working(f"update {event.number}")
            with self._without_gradients_of_others(event.stage):
                weights[event.stage].update(lambda: step(event.number))
            updates.append(UpdateMarks(event.number, begin, summed, self._clock.mark()))

        ProgramLoop(buffers, marks, self._clock, watcher).run(program, compute, update)
        most = {stage: own.most for stage, own in weights.items()}
        seen = {stage: own.seen for stage, own in weights.items()}
        return TrainingRecord(losses, seen, most, marks, tuple(updates))

    @contextmanager
    def _without_gradients_of_others(self, stage: int) -> Generator[None]:
        """In this block the rank's other stages have no gradients, so the optimizer leaves them."""
        others = [
            (parameter, parameter.grad)
            for index, program in self.programs.items()
            if index != stage
            for parameter in program.module.parameters()
        ]
        for parameter, _ in others:
            parameter.grad = None
        yield
        for parameter, gradient in others:
            parameter.grad = gradient

    def _weights(
        self, index: int, microbatches: Sequence[int], predict: Predict | None
    ) -> StageWeights:
        kind, setting = self._rules
        module = self._stages[index].program.module
        if not kind.predicts_with:
            # The schedule fixes the weight version for each microbatch in advance.
            return WeightVersions(
                module, {m: weight_version(kind, setting, index, m) for m in microbatches}
            )
        if predict is None:
            raise UsageError(
                f"{kind.name} predicts weights from the optimizer's state; give the optimizer too"
            )
        distances = Distances(
            int(kind.forward_delay(setting, index)), int(kind.backward_delay(setting, index))
        )
        return PredictedWeights(module, distances, microbatches, setting.num_microbatches, predict)

    def _program(self, num_updates: int) -> Program:
        orders = asynchronous_orders(self._ranks, self._rules, num_updates)
        programs = write_messages(
            orders, self._ranks, self._together, receives_first=self.device.type == "cpu"
        )
        return programs[distributed.get_rank()]


def asynchronous_orders(ranks: StageRanks, rules: AsynchronousRules, num_updates: int) -> Orders:
    """1F1B, or WPipe's orders, over all microbatches in the run, with updates.

    On each rank an update of a stage follows the last backward among the update's microbatches.
    """
    n = rules.setting.num_microbatches
    if rules.kind is not WPIPE:
        orders = make_schedule("1f1b", ranks, n * num_updates)
        return tuple(_with_updates(order, n) for order in orders)
    of_group = wpipe_orders(len(ranks) // 2, n, num_updates)
    by_rank = {ranks[r][0]: order for r, order in enumerate(of_group)}
    return tuple(_with_updates(by_rank.get(r, ()), n) for r in range(max(by_rank) + 1))


def _with_updates(order: Sequence[Action], n: int) -> tuple[Action | Update, ...]:
    last = {(a.stage, a.microbatch // n): a for a in order if a.op == "B"}
    events: list[Action | Update] = []
    for action in order:
        events.append(action)
        number = action.microbatch // n
        if last[action.stage, number] == action:
            events.append(Update(number, action.stage))
    return tuple(events)


class _OnDemand(dict[int, Leaves]):
    """Batch tensors by microbatch, read when they are needed and not kept."""

    def __init__(self, load: Callable[[int], Leaves]) -> None:
        super().__init__()
        self._load = load

    def __missing__(self, microbatch: int) -> Leaves:
        return self._load(microbatch)
