"""One rank's part of a run: from the user's model to what was measured."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import distributed

from autopart.plan import Plan
from autopart.run_result import RunResult
from autopart.runtime.capture.capture import Captured
from autopart.runtime.capture.split import StageProgram, split_stages
from autopart.runtime.execution.assembly import make_asynchronous_executor, make_executor
from autopart.runtime.execution.asynchronous import AsynchronousExecutor
from autopart.runtime.execution.board import SETTING_UP, Board
from autopart.runtime.execution.check import Check
from autopart.runtime.execution.clock import Clock, clock_of
from autopart.runtime.execution.comparison import Comparison, train_plain
from autopart.runtime.execution.dropout import DropNothing, drop_nothing, random_operations
from autopart.runtime.execution.flushless import asynchronous_run, run_without_flush
from autopart.runtime.execution.measured import (
    RankRun,
    StepRun,
    last_slices,
    losses_of,
    rank_step,
    share_of_core,
    stages_of,
    step_times_of,
    update_losses_of,
)
from autopart.runtime.execution.microbatches import Microbatches
from autopart.runtime.execution.optimizer import Optimizer
from autopart.runtime.execution.peak_memory import how_measured, peak_bytes, watch_peak
from autopart.runtime.execution.plan_match import capture_for_plan, check_same_weights
from autopart.runtime.execution.rank_executor import StepExecutor
from autopart.runtime.execution.rank_optimizer import rank_optimizer
from autopart.runtime.execution.run_settings import RunSettings, optimizer_name
from autopart.runtime.execution.stage import Leaves
from autopart.runtime.execution.stash_meter import StashMeter
from autopart.runtime.execution.tensor_bytes import most_tensor_bytes
from autopart.runtime.models.model import (
    ModelSource,
    build_training_model,
    example_batch,
)
from autopart.runtime.models.model_file import load_model

_UNDISTURBED = 0.95
"""Ranks that had less of their cores were not alone."""


Report = Callable[[int, int, str], None]
"""Told the steps done, the steps in all, and what the run is at."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process stands."""

    rank: int
    num_ranks: int
    device: torch.device
    backend: str
    """What carries messages on `device`: gloo or nccl."""


def train(
    plan: Plan,
    settings: RunSettings,
    place: Place,
    board: Board,
    report: Report | None = None,
) -> RunResult | None:
    """Run the plan's steps as one rank of an initialised process group; the result on rank 0.

    `report` is told of each step that is done, and how many samples a second it took in.
    Raises ModelError for a model that cannot be used, PlanError for a plan of another model,
    LostPeer where another rank is gone, and on rank 0 RunError where a check fails.
    """
    run = _Run(plan, settings, place, board, report)
    mine = run.steps()
    board.waiting("the end of the run", None)
    runs: list[RankRun] = [mine] * place.num_ranks
    distributed.all_gather_object(runs, mine)
    return run.result(runs) if place.rank == 0 else None


class _Run:
    """One rank's run between its set-up and its result."""

    def __init__(
        self,
        plan: Plan,
        settings: RunSettings,
        place: Place,
        board: Board,
        report: Report | None,
    ) -> None:
        self._report = report
        self._plan, self._settings, self._place, self._board = plan, settings, place, board
        source = load_model(settings.model)
        captured = self._captured(source)
        self._dropouts = drop_nothing(captured.module) if settings.check else 0
        self._random = random_operations(captured.module)
        self._data = Microbatches(plan, source, captured, settings.seed)
        programs = split_stages(captured, [stage.layers for stage in plan.stages])
        check = self._plain(source, programs) if settings.check and place.rank == 0 else None
        board.waiting("the process groups", None)
        executor = self._executor = self._make_executor(programs)
        self._comparison = (
            Comparison(plan, check, executor, board.waiting) if settings.check else None
        )
        self._optimizer = rank_optimizer(plan, executor, optimizer_name(settings), settings.lr)
        torch.manual_seed(settings.seed + place.rank)

    def steps(self) -> RankRun:
        """Train; every rank must call it."""
        gc.collect()  # Graphs are circles, and hold the weights of the other ranks' stages.
        watch_peak(self._place.device)
        if isinstance(self._executor, AsynchronousExecutor):
            return self._without_flush(self._executor)
        executor, count = self._executor, self._settings.steps
        meter = StashMeter()
        done = tuple(self._metered(executor, step, meter) for step in range(count))
        peak = peak_bytes(self._place.device)
        if self._comparison is not None:
            self._comparison.last()
        counted = self._counted(executor, peak) if self._settings.count_bytes else None
        return RankRun(done, peak, meter.most_bytes, tensor_bytes=counted)

    def result(self, runs: Sequence[RankRun]) -> RunResult:
        """What all ranks measured; raises RunError where the check failed."""
        plan, times = self._plan, step_times_of(runs)
        losses = losses_of(runs)
        measured = statistics.median(times[1:] or times)
        name = self._settings.asynchronous
        endless = asynchronous_run(plan, name, self._settings.steps, runs) if name else None
        predicted = (
            endless.predicted_period * plan.num_microbatches
            if endless
            else plan.prediction.step_time
        )
        return RunResult(
            model=self._settings.model,
            device=device_name(self._place.device),
            backend=self._place.backend,
            dtype=plan.origin.dtype,
            optimizer=self._optimizer.name,
            num_ranks=self._place.num_ranks,
            num_microbatches=plan.num_microbatches,
            microbatch_size=plan.microbatch_size,
            losses=losses,
            step_times=times,
            step_time=measured,
            predicted_step_time=predicted,
            error=predicted / measured - 1.0,
            stages=stages_of(plan, runs, alone=endless is not None),
            memory=how_measured(self._place.device),
            check=None
            if self._comparison is None
            else self._comparison.outcome(update_losses_of(runs), self._dropouts, self._random),
            ranks=tuple(map(rank_step, range(len(runs)), runs)),
            asynchronous=endless,
            trace=tuple(map(last_slices, runs)),
            notes=_notes(runs, self._settings),
        )

    def _captured(self, source: ModelSource) -> Captured:
        plan, seed = self._plan, self._settings.seed
        self._board.working("building the model", SETTING_UP)
        dtype, size = plan.origin.dtype, plan.microbatch_size
        # Autocast differs between kinds of devices, and so does what is captured under it.
        device = "cpu" if self._autocast is None else str(self._place.device)
        model = build_training_model(source, dtype=dtype, device=device, seed=seed)
        self._board.waiting("the comparison of weights", None)
        check_same_weights(model)
        batch = example_batch(source, size, dtype=dtype, device=device, seed=seed)
        self._board.working("capturing the model", SETTING_UP)
        return capture_for_plan(plan, model, batch, self._autocast)

    @property
    def _autocast(self) -> torch.dtype | None:
        return torch.bfloat16 if self._settings.autocast else None

    def _make_executor(
        self, programs: Sequence[StageProgram]
    ) -> StepExecutor | AsynchronousExecutor:
        plan, settings, device = self._plan, self._settings, self._place.device
        if settings.asynchronous is not None:
            return make_asynchronous_executor(
                plan, programs, settings.asynchronous, device=device, watcher=self._board
            )
        return make_executor(
            plan, programs, device=device, watcher=self._board, backend=settings.backend
        )

    def _plain(self, source: ModelSource, programs: Sequence[StageProgram]) -> Check:
        return train_plain(
            self._plan,
            self._settings,
            source,
            self._data,
            str(self._place.device),
            {name: index for index, of in enumerate(programs) for name in of.parameters},
            lambda text: self._board.working(text, SETTING_UP),
        )

    def _without_flush(self, executor: AsynchronousExecutor) -> RankRun:
        steps, board, size = self._settings.steps, self._board, self._plan.num_microbatches
        board.working("the data of the run")
        dealt = executor.microbatches(steps * size // executor.microbatches_per_update)
        mine = [[m % size for m in dealt if m // size == step] for step in range(steps)]
        batches = [
            self._data.of_step(step, own, executor.inputs, self._place.device)
            for step, own in enumerate(mine)
        ]
        board.waiting("the start of the run", None)
        distributed.barrier()
        begin = time.perf_counter()

        def note(done: int) -> None:
            self._note_progress(done, (time.perf_counter() - begin) / done)

        clock = clock_of(self._place.device)
        comparison, optimizer = self._comparison, self._optimizer
        with nullcontext() if comparison is None else DropNothing():
            done = run_without_flush(executor, batches, size, optimizer, clock, note, comparison)
        if comparison is not None:
            comparison.last()
        return done

    def _metered(self, executor: StepExecutor, step: int, meter: StashMeter) -> StepRun:
        """Counting slows the first step, which no median counts where there are more."""
        counts = step == 0 and (self._settings.steps > 1 or self._settings.check)
        executor.meter = meter if counts else None
        return self._step(executor, step)

    def _step(self, executor: StepExecutor, step: int) -> StepRun:
        clock, board = clock_of(self._place.device), self._board
        board.working(f"the data of step {step + 1}")
        microbatches = self._microbatches(executor, step)
        board.waiting(f"the start of step {step + 1}", None)
        distributed.barrier()
        begin = time.perf_counter()
        # The graph's own dropouts are off already; modules that run as they are have theirs.
        comparison = self._comparison if step == 0 else None
        with DropNothing() if self._settings.check else nullcontext():
            loss = executor.step(microbatches)
        clock.wait()
        done = time.perf_counter()
        if comparison is not None:
            comparison.gradients()
        board.working("the optimizer's step")
        update_time = _timed_update(self._optimizer, clock)
        if comparison is not None:
            comparison.first_update()
        time_taken = done - begin + update_time
        self._note_progress(step + 1, time_taken)
        return StepRun(
            loss=None if loss is None else loss.item(),
            trace=executor.trace(),
            time=time_taken,
            update_time=update_time,
        )

    def _microbatches(self, executor: StepExecutor, step: int) -> dict[int, Leaves]:
        mine = executor.microbatches
        return self._data.of_step(step, mine, executor.inputs, self._place.device)

    def _counted(self, mine: StepExecutor, peak: int) -> int:
        """The most bytes of tensors in one more step; on a GPU the peak of the others says it."""
        if self._place.device.type == "cuda":
            return peak
        microbatches = self._microbatches(mine, self._settings.steps)
        read = (leaf for leaves in microbatches.values() for leaf in leaves.values())
        there = (*mine.parameters.values(), *mine.buffers.values(), *self._optimizer.state, *read)

        def step() -> None:
            mine.step(microbatches)
            self._optimizer.step()

        self._board.working("a step that counts bytes", SETTING_UP)
        aside = self._optimizer.counters
        return most_tensor_bytes(step, there, self._place.device, aside)

    def _note_progress(self, done: int, time_taken: float) -> None:
        samples = self._plan.num_microbatches * self._plan.microbatch_size
        self._board.step, self._board.speed = done, samples / time_taken
        if self._report is not None:
            self._report(done, self._settings.steps, f"{self._board.speed:.3g} samples/s")


def _timed_update(optimizer: Optimizer, clock: Clock) -> float:
    begin = time.perf_counter()
    optimizer.step()
    clock.wait()
    return time.perf_counter() - begin


def _notes(runs: Sequence[RankRun], settings: RunSettings) -> tuple[str, ...]:
    """What the reader of the times should know."""
    notes: list[str] = []
    if settings.autocast:
        notes.append("under autocast to bfloat16, which the prediction does not know")
    if settings.backend == "torch":
        notes.append(
            "run by torch's own schedules: the time between actions counts as waiting, and a receive "
            "buffer for every microbatch adds to the predicted peak"
        )
    if len(runs[0].steps) == 1:
        notes.append("one step only: its time includes connecting and first allocations")
    core = share_of_core(runs)
    if core < _UNDISTURBED:
        notes.append(
            f"other processes used the cores: the ranks had {core:.0%} of the time of their "
            "actions, and the measured times are that much too long"
        )
    return tuple(notes)


def device_name(device: torch.device) -> str:
    """cpu, or the name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
