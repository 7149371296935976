"""One rank's part of a run: from the user's model to its measurements."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import distributed

from autopart.cost.stage_times import plan_minimised
from autopart.fidelity.pace import compare_pace, notes_on_pace
from autopart.records.plan import Plan, cast_of, num_ranks
from autopart.records.plan_degrees import (
    gpus_of_ranks,
    group_of_rank,
    has_several_degrees,
    num_processes,
    rank_sizes,
)
from autopart.records.rank_group import degrees_of, samples_per_gpu
from autopart.records.run_result import CheckResult, RunResult
from autopart.runtime.capture.capture import Captured
from autopart.runtime.capture.stage_modules import StageProgram
from autopart.runtime.checking.check import CheckRecord
from autopart.runtime.checking.comparison import Comparison
from autopart.runtime.checking.dropout import drop_nothing, may_draw_numbers
from autopart.runtime.checking.plain_training import train_plain
from autopart.runtime.engine.assembly import make_asynchronous_executor, make_executor
from autopart.runtime.engine.asynchronous import AsynchronousExecutor
from autopart.runtime.engine.batches import samples_of_place
from autopart.runtime.engine.compiled_stages import compile_stages
from autopart.runtime.engine.gradients import clip
from autopart.runtime.engine.group_part import GroupPart
from autopart.runtime.engine.local_model import LocalModel, local_model_of
from autopart.runtime.engine.microbatches import Microbatches
from autopart.runtime.engine.plan_match import (
    capture_for_plan,
    check_same_in_group,
    check_same_weights,
)
from autopart.runtime.engine.rank_executor import StepExecutor
from autopart.runtime.engine.rank_optimizer import rank_optimizer
from autopart.runtime.engine.run_settings import (
    RunSettings,
    optimizer_name,
    runs_back_to_back,
)
from autopart.runtime.engine.stage import Leaves
from autopart.runtime.engine.state_dict import all_names
from autopart.runtime.job.rank_pace import RankPace
from autopart.runtime.job.rank_results import (
    RankRun,
    StepRun,
    device_name,
    last_slices,
    loads_of_run,
    losses_of,
    rank_step,
    run_notes,
    stages_of,
    step_times_of,
    update_losses_of,
)
from autopart.runtime.job.saved_state import load_state, save_state
from autopart.runtime.job.status_board import SETTING_UP, StatusBoard
from autopart.runtime.job.training_without_flush import asynchronous_run, run_without_flush
from autopart.runtime.measuring.clock import DeviceClock, clock_of
from autopart.runtime.measuring.peak_memory import how_measured, peak_bytes, watch_peak
from autopart.runtime.measuring.stash_meter import StashMeter
from autopart.runtime.measuring.tensor_bytes import most_tensor_bytes
from autopart.runtime.models.model import build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from autopart.runtime.sharding.context.expert_loads import noted_loads
from autopart.runtime.sharding.group_graphs import exchanging
from autopart.runtime.sharding.groups import TensorGroup
from autopart.runtime.transforms.seeded_parts import Parts, parts_of
from autopart.runtime.update.optimizer import Optimizer
from autopart.zoo.source import ModelSource

BACK_TO_BACK = (
    "steps ran back to back: step times are those of the slowest rank from update to update, beside the "
    "predicted period"
)
"""Said of a run of a plan that minimises the period."""

_SEED_STRIDE = 1 << 32
"""Between the seeds of processes with other samples."""

Report = Callable[[int, int, str], None]
"""Called with the steps done, the number of steps, and the current activity."""


@dataclass(frozen=True, slots=True)
class Place:
    """This process's rank and device. With a tensor degree a rank is a tensor group of processes."""

    rank: int
    num_ranks: int
    device: torch.device
    backend: str
    """Transport for messages on `device`: gloo or nccl."""
    tensor: TensorGroup | None = None
    """The processes that share this rank's layers; None with tensor degree 1."""
    place: int = 0
    """This process's place in its tensor group."""


def train(
    plan: Plan,
    settings: RunSettings,
    place: Place,
    status_board: StatusBoard,
    report: Report | None = None,
) -> RunResult | None:
    """Run the plan's steps as one rank of a process group; returns the result on rank 0.

    `report` is told about each step and its samples per second. Raises ModelError for a model that
    cannot be used, PlanError for a plan from another model, LostRank if another rank is gone. On
    rank 0, raises RunError if a check fails.
    """
    degrees = degrees_of(group_of_rank(plan, place.rank))
    with nullcontext() if place.tensor is None else exchanging(degrees, place.tensor.of_layers):
        run = _Run(plan, settings, place, status_board, report)
        mine = run.steps()
    status_board.waiting("the end of the run", None)
    runs: list[RankRun] = [mine] * distributed.get_world_size()
    distributed.all_gather_object(runs, mine)
    if has_several_degrees(plan):
        # All processes are in one world. The first of each tensor group stands for its rank.
        runs = [runs[processes[0]] for processes in gpus_of_ranks(rank_sizes(plan))]
    return run.result(runs) if place.rank == 0 else None


class _Run:
    """One rank's run, from its set-up to its result."""

    def __init__(
        self,
        plan: Plan,
        settings: RunSettings,
        place: Place,
        status_board: StatusBoard,
        report: Report | None,
    ) -> None:
        self._report = report
        self._plan, self._settings = plan, settings
        self._place, self._status_board = place, status_board
        source = load_model(settings.model)
        model = self._local(self._captured(source))
        captured = model.captured
        self._dropouts = drop_nothing(captured.module) if settings.check else 0
        draws = may_draw_numbers(captured.module)
        self._data = Microbatches(plan, source, captured, settings.seed, place.place)
        programs, group = model.programs()
        parts = parts_of(captured.module)
        compares = settings.check and place.rank == 0 and place.place == 0
        check = self._plain(source, parts, programs) if compares else None
        status_board.waiting("the process groups", None)
        executor = self._executor = self._make_executor(programs, group)
        if settings.compile:
            status_board.working("compiling the stages", SETTING_UP)
            leaves = self._data.of_step(0, [0], executor.inputs, place.device)[0]
            compile_stages(executor.programs.values(), leaves, place.device)
        self._comparison: Comparison | None = None
        if settings.check:
            self._comparison = Comparison(
                plan,
                check,
                executor,
                status_board.waiting,
                parts,
                draws=draws,
                samples=samples_of_place(plan, place.place),
            )
        # Clipping reads whole gradients.
        scatters = settings.clip_norm is None
        self._optimizer = rank_optimizer(
            plan, executor, optimizer_name(settings), settings.lr, scatters=scatters
        )
        self._back_to_back = runs_back_to_back(plan, settings)
        self._ready: list[dict[int, Leaves]] = []
        """The data of each step, where steps run back to back."""
        self._ended = 0.0
        """When the last update ended, by `time.perf_counter()`."""
        self._first = self._loaded()
        # Equal on all processes of a tensor group, and another for other samples. A run that continues draws other numbers.
        samples = samples_of_place(plan, place.place)
        others = 0 if samples is None else samples.place * _SEED_STRIDE
        torch.manual_seed(settings.seed + place.rank + place.num_ranks * self._first + others)

    def steps(self) -> RankRun:
        """Train all steps. Collective over all ranks."""
        gc.collect()  # Graphs are reference cycles, and keep the weights of other ranks' stages.
        count = self._settings.steps
        pace = RankPace(self._place.device, count, self._status_board)
        watch_peak(self._place.device)
        pace.all_turns()
        if isinstance(self._executor, AsynchronousExecutor):
            run = self._without_flush(self._executor)
            pace.all_turns()
            return run._replace(pace=pace.pace())
        executor, meter = self._executor, StashMeter()
        done: list[StepRun] = []
        if self._back_to_back:
            # No rank waits for data, nor samples its pace, between two steps.
            self._status_board.working("the data of the run")
            self._ready = [self._microbatches(executor, step) for step in range(count)]
        with noted_loads() as noted:
            for step in range(count):
                if step and not self._back_to_back:
                    pace.between(step - 1)
                done.append(self._metered(executor, step, meter))
        pace.all_turns()
        peak = peak_bytes(self._place.device)
        if self._comparison is not None:
            self._comparison.last()
        if self._settings.save is not None:
            self._status_board.working("saving the state", SETTING_UP)
            save_state(self._settings.save, executor, self._optimizer, self._names)
        counted = self._counted(executor, peak) if self._settings.count_bytes else None
        own = RankRun(tuple(done), peak, meter.most_bytes, tensor_bytes=counted, pace=pace.pace())
        return own._replace(loads=noted.sums())

    def result(self, runs: Sequence[RankRun]) -> RunResult:
        """The result from all ranks' measurements; raises RunError if the check fails."""
        plan, times = self._plan, step_times_of(runs)
        losses = losses_of(runs)
        measured = statistics.median(times[1:] or times)
        name = self._settings.asynchronous
        asynchronous = asynchronous_run(plan, name, self._settings.steps, runs) if name else None
        predicted = plan_minimised(plan) if self._back_to_back else plan.prediction.step_time
        if asynchronous is not None:
            predicted = asynchronous.predicted_period * plan.num_microbatches
        ranks = tuple(map(rank_step, range(len(runs)), runs))
        return RunResult(
            model=self._settings.model,
            device=device_name(self._place.device),
            backend=self._place.backend,
            dtype=plan.origin.dtype,
            optimizer=self._optimizer.name,
            num_ranks=self._place.num_ranks,
            num_microbatches=plan.num_microbatches,
            microbatch_size=plan.microbatch_size,
            losses=tuple(loss if math.isfinite(loss) else None for loss in losses),
            step_times=times,
            step_time=measured,
            predicted_step_time=predicted,
            error=predicted / measured - 1.0,
            pace=compare_pace(plan, ranks, predicted, measured),
            stages=stages_of(plan, runs, alone=asynchronous is not None),
            memory=how_measured(self._place.device),
            check=self._outcome(runs),
            ranks=ranks,
            asynchronous=asynchronous,
            trace=tuple(map(last_slices, runs)),
            expert_loads=loads_of_run(plan, runs),
            notes=(
                *run_notes(runs, self._settings, rank_sizes(plan)),
                *([BACK_TO_BACK] if self._back_to_back else []),
                *notes_on_pace(plan, ranks),
            ),
        )

    def _outcome(self, runs: Sequence[RankRun]) -> CheckResult | None:
        if self._comparison is None:
            return None
        return self._comparison.outcome(update_losses_of(runs), self._dropouts)

    def _captured(self, source: ModelSource) -> Captured:
        plan, seed = self._plan, self._settings.seed
        self._status_board.working("building the model", SETTING_UP)
        dtype, size = cast_of(plan), samples_per_gpu(plan.microbatch_size, plan.group)
        # Autocast casts other operations on a CPU than on a GPU. So the model is captured on the
        # kind of device that runs it.
        device = "cpu" if self._autocast is None else str(self._place.device)
        model = build_training_model(source, dtype=dtype, device=device, seed=seed)
        self._status_board.waiting("the comparison of weights", None)
        check_same_weights(model)
        if self._place.tensor is not None:
            check_same_in_group(model, self._place.tensor, self._place.device)
        self._names = all_names(model)
        batch = example_batch(source, size, dtype=dtype, device=device, seed=seed)
        self._status_board.working("capturing the model", SETTING_UP)
        return capture_for_plan(plan, model, batch, self._autocast)

    def _local(self, captured: Captured) -> LocalModel:
        """The model as this process runs it."""
        place = self._place
        if num_processes(self._plan) > num_ranks(self._plan):
            self._status_board.working("sharding the model", SETTING_UP)
        return local_model_of(self._plan, captured, place.rank, place.place, place.tensor)

    def _loaded(self) -> int:
        """Load the state that the run continues from; return the steps done before, 0 without it."""
        folder = self._settings.load
        if folder is None:
            return 0
        self._status_board.working("loading the saved state", SETTING_UP)
        return load_state(folder, self._executor, self._optimizer, self._names)

    @property
    def _autocast(self) -> torch.dtype | None:
        return torch.bfloat16 if self._settings.autocast else None

    def _make_executor(
        self, programs: Sequence[StageProgram], group: GroupPart
    ) -> StepExecutor | AsynchronousExecutor:
        plan, settings, device = self._plan, self._settings, self._place.device
        if settings.asynchronous is not None:
            return make_asynchronous_executor(
                plan, programs, settings.asynchronous, device=device, watcher=self._status_board
            )
        return make_executor(
            plan,
            programs,
            device=device,
            watcher=self._status_board,
            backend=settings.backend,
            sync=settings.sync,
            group=group,
        )

    def _plain(
        self, source: ModelSource, parts: Parts, programs: Sequence[StageProgram]
    ) -> CheckRecord:
        return train_plain(
            self._plan,
            self._settings,
            source,
            self._data,
            str(self._place.device),
            programs,
            parts,
            lambda text: self._status_board.working(text, SETTING_UP),
        )

    def _without_flush(self, executor: AsynchronousExecutor) -> RankRun:
        steps, size = self._settings.steps, self._plan.num_microbatches
        status_board = self._status_board
        status_board.working("the data of the run")
        dealt = executor.microbatches(steps * size // executor.microbatches_per_update)
        mine = [[m % size for m in dealt if m // size == step] for step in range(steps)]
        batches = [
            self._data.of_step(step, own, executor.inputs, self._place.device)
            for step, own in enumerate(mine)
        ]
        status_board.waiting("the start of the run", None)
        distributed.barrier()
        begin, clock = time.perf_counter(), clock_of(self._place.device)

        def note(done: int) -> None:
            self._note_progress(done, (time.perf_counter() - begin) / done)

        comparison, optimizer = self._comparison, self._optimizer
        with nullcontext() if comparison is None else comparison.repeatable():
            done = run_without_flush(executor, batches, size, optimizer, clock, note, comparison)
        if comparison is not None:
            comparison.last()
        return done

    def _metered(self, executor: StepExecutor, step: int, meter: StashMeter) -> StepRun:
        """A step that counts stash bytes if it is the first of several, or checked.

        Counting slows the step down. Medians leave the first of several steps out.
        """
        counts = step == 0 and (self._settings.steps > 1 or self._settings.check)
        executor.meter = meter if counts else None
        return self._step(executor, step)

    def _step(self, executor: StepExecutor, step: int) -> StepRun:
        clock, status_board = clock_of(self._place.device), self._status_board
        begin, microbatches = self._begin(executor, step)
        comparison = self._comparison if step == 0 else None
        repeatable = nullcontext() if self._comparison is None else self._comparison.repeatable()
        with repeatable, nullcontext() if executor.shards is None else executor.shards.exchanging():
            loss = executor.step(microbatches)
        clock.wait()
        time_taken = time.perf_counter() - begin
        loss = executor.whole_loss(loss)
        if self._settings.clip_norm is not None:
            status_board.waiting("the norm of all gradients", None)
            clip(executor, self._settings.clip_norm)
        if self._comparison is not None:
            self._comparison.note_kinds()
        if comparison is not None:
            comparison.gradients()
        status_board.working("the optimizer's step")
        update_time = _timed_update(self._optimizer, clock)
        if comparison is not None:
            comparison.first_update()
        time_taken += update_time
        self._ended = time.perf_counter()
        self._note_progress(step + 1, time_taken)
        trace = executor.trace()
        return StepRun(
            loss=None if loss is None else loss.item(),
            trace=trace,
            time=time_taken,
            update_time=update_time + trace.group_time,
        )

    def _begin(self, executor: StepExecutor, step: int) -> tuple[float, dict[int, Leaves]]:
        """When the step begins, and its data: together on all ranks, or behind this rank's last update."""
        if self._back_to_back and step:
            return self._ended, self._ready[step]
        status_board = self._status_board
        status_board.working(f"the data of step {step + 1}")
        microbatches = self._microbatches(executor, step)
        status_board.waiting(f"the start of step {step + 1}", None)
        distributed.barrier()
        return time.perf_counter(), microbatches

    def _microbatches(self, executor: StepExecutor, step: int) -> dict[int, Leaves]:
        own, read = executor.microbatches, executor.inputs
        return self._data.of_step(self._first + step, own, read, self._place.device)

    def _counted(self, mine: StepExecutor, peak: int) -> int:
        """Most tensor bytes, counted in one more step. A GPU's measured peak is this number."""
        if self._place.device.type == "cuda":
            return peak
        microbatches = self._microbatches(mine, self._settings.steps)
        read = (leaf for leaves in microbatches.values() for leaf in leaves.values())
        own = (*mine.parameters.values(), *mine.buffers.values(), *mine.borrowed)
        there = (*own, *self._optimizer.state, *read)

        def step() -> None:
            with nullcontext() if mine.shards is None else mine.shards.exchanging():
                mine.step(microbatches)
            self._optimizer.step()

        self._status_board.working("a step that counts bytes", SETTING_UP)
        return most_tensor_bytes(step, there, self._place.device, self._optimizer.counters)

    def _note_progress(self, done: int, time_taken: float) -> None:
        samples = self._plan.num_microbatches * self._plan.microbatch_size
        self._status_board.step, self._status_board.speed = done, samples / time_taken
        if self._report is not None:
            self._report(done, self._settings.steps, f"{self._status_board.speed:.3g} samples/s")


def _timed_update(optimizer: Optimizer, clock: DeviceClock) -> float:
    begin = time.perf_counter()
    optimizer.step()
    clock.wait()
    return time.perf_counter() - begin
