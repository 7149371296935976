"""PipeDream and PipeDream-2BW: one forward and one backward in turn, updates without a flush.

    rank 0  0F0 0F1  .  0B0 u0 0F2 0B1 u1 0F3 0B2 u2 …
    rank 1   .  1F0 1B0 u0 1F1 1B1 u1 1F2 1B2 u2 …

The orders are 1F1B's over all microbatches of a run, with an update behind the last backward of its
microbatches on each rank: of one microbatch each (PipeDream), or of several (2BW). A microbatch runs
backward with the weights of its forward, which `schedules.asynchronous` numbers. Update n changes the
newest weights by the gradients of the older ones that its microbatches were computed with.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import distributed

from autopart.errors import PlanError, ScheduleError
from autopart.plan import Plan, stage_ranks
from autopart.runtime.execution.clock import Mark
from autopart.runtime.execution.executor import microbatches_of
from autopart.runtime.execution.gradient_sum import Holders
from autopart.runtime.execution.held import Held, Stages, Tensors
from autopart.runtime.execution.messages import (
    Orders,
    Program,
    Together,
    Update,
    write_messages,
)
from autopart.runtime.execution.program_loop import ProgramLoop
from autopart.runtime.execution.rank_executor import RankExecutor, RankPart
from autopart.runtime.execution.stage import Leaves
from autopart.runtime.execution.step_trace import Marks, begin_marks
from autopart.runtime.execution.transfers import BETWEEN_RANKS, carried
from autopart.runtime.execution.weight_versions import WeightVersions
from autopart.schedule import Action, StageRanks
from autopart.schedules import make_schedule
from autopart.schedules.asynchronous import (
    PIPEDREAM,
    TWO_BUFFERED,
    Asynchronous,
    Setting,
    check_setting,
    weight_version,
)

TRAINED = {kind.name: kind for kind in (PIPEDREAM, TWO_BUFFERED)}
"""The asynchronous schedules that are run; the others are priced."""


class Way(NamedTuple):
    """An asynchronous schedule on the stages of a plan."""

    kind: Asynchronous
    setting: Setting


def way_of(plan: Plan, name: str) -> Way:
    """The schedule called `name` with the plan's microbatches to an update, or one. Raises PlanError
    where it is not run, or not on the plan's stages."""
    if name not in TRAINED:
        raise PlanError(f"asynchronous schedule '{name}' is not run; known: {', '.join(TRAINED)}")
    kind = TRAINED[name]
    ranks = stage_ranks(plan)
    counts = [len(on) for on in ranks]
    if len({rank for on in ranks for rank in on}) < sum(counts):
        raise PlanError(
            f"{kind.name} runs one stage on each rank, and this plan's ranks have several; solve with "
            "--schedule 1f1b"
        )
    if kind.every_microbatch and max(counts) > 1:
        raise PlanError(
            f"{kind.name} updates after every microbatch, which replicas share out, and stages have "
            f"up to {max(counts)}; solve with --replicas 1, or take {TWO_BUFFERED.name}"
        )
    to_an_update = 1 if kind.every_microbatch else plan.num_microbatches
    setting = Setting(len(ranks), to_an_update)
    try:
        check_setting(kind, setting._replace(num_stages=sum(counts)))
    except ScheduleError as error:
        raise PlanError(f"{error}; solve with a larger --global-batch") from error
    return Way(kind, setting)


def check_no_shared(way: Way, holders: Sequence[Holders]) -> None:
    """Raise PlanError where stages of different delays would have to sum a parameter's gradients."""
    kind = way.kind
    if kind.every_microbatch and holders:
        name, on = holders[0].names[0], holders[0].ranks
        raise PlanError(
            f"{kind.name} gives each stage weights of another age, and '{name}' is tied over stages on "
            f"ranks {', '.join(map(str, on))}; take {TWO_BUFFERED.name}, solve with --same-stage for "
            "its layers, or untie it"
        )


class UpdateMarks(NamedTuple):
    """When an update of one rank began, when its gradients were summed, and when it was done."""

    begin: Mark
    summed: Mark
    done: Mark


class Trained(NamedTuple):
    """What a rank saw of an asynchronous run."""

    losses: Mapping[int, torch.Tensor]
    """The loss of each microbatch that this rank computed it of."""
    versions: Mapping[int, int]
    """By microbatch how many updates the weights had seen that this rank computed it with."""
    most_versions: int
    """Of its weights that it held at once, the newest included."""
    marks: Marks
    updates: tuple[UpdateMarks, ...]


class AsynchronousExecutor(RankExecutor):
    """One rank's stage under a schedule that never flushes."""

    def __init__(
        self, part: RankPart, stages: Stages, way: Way, ranks: StageRanks, together: Together
    ) -> None:
        """`together` says for each rank which others sum gradients with it."""
        super().__init__(part)
        self._stages = dict(stages)
        self._way = way
        self._ranks = ranks
        self._together = together

    @property
    def microbatches_per_update(self) -> int:
        """Of all replicas together."""
        return self._way.setting.num_microbatches

    def microbatches(self, num_updates: int) -> tuple[int, ...]:
        """Those of the run's microbatches that this rank is dealt."""
        return microbatches_of(self._program(num_updates))

    def train(
        self, load: Callable[[int], Leaves], num_updates: int, step: Callable[[], None]
    ) -> Trained:
        """Run from the first forward to the last update, without a flush in between.

        `load` gives the tensors of a microbatch that this rank's stage reads, when its forward needs
        them. `step` applies the parameters' ``grad``, which are those of the mean loss of the
        update's microbatches, and clears them. Raises LostPeer where another rank is gone.
        """
        program, watcher = self._program(num_updates), self._part.watcher
        n = self.microbatches_per_update
        seen = {m: self._version(m) for m in microbatches_of(program)}
        versions = [
            WeightVersions(stage.program.module, seen.values()) for stage in self._stages.values()
        ]
        for stage in self._stages.values():
            stage.chunks = n * num_updates
        held = Held(self._stages, _OnDemand(load), 1.0 / n, BETWEEN_RANKS)
        marks, updates = begin_marks(self._clock, self.device), list[UpdateMarks]()
        losses: dict[int, torch.Tensor] = {}

        def compute(action: Action, needed: Tensors) -> None:
            version, (own,) = seen[action.microbatch], versions
            own.run(version, lambda: held.compute(action, needed))
            if action.op == "B":
                own.done(version)
            elif held.loss is not None:
                losses[action.microbatch], held.loss = held.loss, None

        def update(event: Update) -> None:
            begin = self._clock.mark()
            watcher.waiting(f"the sum of gradients of update {event.number}", None)
            carried(self._part.sums.run, None, "the sum of gradients")
            summed = self._clock.mark()
            watcher.working(f"update {event.number}")
            for own in versions:
                own.update(step)
            updates.append(UpdateMarks(begin, summed, self._clock.mark()))

        ProgramLoop(held, marks, self._clock, watcher).run(program, compute, update)
        most = max((own.most for own in versions), default=0)
        return Trained(losses, seen, most, marks, tuple(updates))

    def _version(self, microbatch: int) -> int:
        (stage,) = self._stages
        return weight_version(self._way.kind, self._way.setting, stage, microbatch)

    def _program(self, num_updates: int) -> Program:
        orders = way_orders(self._ranks, self._way, num_updates)
        programs = write_messages(
            orders, self._ranks, self._together, receives_first=self.device.type == "cpu"
        )
        return programs[distributed.get_rank()]


def way_orders(ranks: StageRanks, way: Way, num_updates: int) -> Orders:
    """1F1B over all microbatches, and behind the last backward of an update's microbatches on a rank
    the update."""
    n = way.setting.num_microbatches
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
    """The tensors of each microbatch, loaded when they are asked for and not kept."""

    def __init__(self, load: Callable[[int], Leaves]) -> None:
        super().__init__()
        self._load = load

    def __missing__(self, microbatch: int) -> Leaves:
        return self._load(microbatch)
