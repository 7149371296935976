"""The ranks of a plan one after the other on one device, with stand-ins for their neighbours.

So a plan for many GPUs is held against one: the times of its stages and the most that each rank holds,
with the microbatches in flight that the plan's order gives it. Only the stages of one rank have
weights at a time, and those are drawn at random where the model can be built without memory.
"""

# pyright: reportPrivateImportUsage=false

import gc
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import distributed, fx

from autopart.errors import ModelError, UsageError
from autopart.plan import Plan, num_ranks
from autopart.run_result import OneDeviceResult
from autopart.runtime.capture.capture import Captured
from autopart.runtime.capture.split import StageProgram, split_stages
from autopart.runtime.execution.assembly import make_lone_executor
from autopart.runtime.execution.clock import clock_of
from autopart.runtime.execution.executor import Executor
from autopart.runtime.execution.measured import (
    RankRun,
    StepRun,
    last_slices,
    rank_step,
    stages_of,
)
from autopart.runtime.execution.microbatches import Microbatches
from autopart.runtime.execution.optimizer import LEARNING_RATES, Optimizer
from autopart.runtime.execution.peak_memory import watch_peak
from autopart.runtime.execution.plan_match import capture_for_plan
from autopart.runtime.execution.rank_optimizer import rank_optimizer
from autopart.runtime.execution.stand_ins import NEIGHBOURS, give_weights
from autopart.runtime.execution.tensor_bytes import how_counted, most_tensor_bytes
from autopart.runtime.execution.training import Report, device_name
from autopart.runtime.models.model import (
    ModelSource,
    build_training_model,
    example_batch,
    load_model,
)


class _Model(NamedTuple):
    """The model that is cut, and where its data come from."""

    captured: Captured
    data: Microbatches


def run_on_one_device(
    plan: Plan,
    model: str,
    *,
    steps: int = 5,
    optimizer: str | None = None,
    device: str | None = None,
    seed: int = 0,
    report: Report | None = None,
) -> OneDeviceResult:
    """Run `steps` steps of each rank of `plan` alone, of ranks with the same stages the first.

    `optimizer` is by default the one that the plan reckons with; its learning rate is 0. `device` is
    cpu or cuda, by default cuda where there is one. `report` is told of each rank. Makes, for the
    time being, a process group of this process alone. Raises ModelError and PlanError as a run
    does, UsageError for a device that is not here.
    """
    where = _device(device)
    name = optimizer or planned_optimizer(plan)
    first_of: dict[tuple[int, ...], int] = {}
    alike = [first_of.setdefault(_stages_on(plan, r), r) for r in range(num_ranks(plan))]
    used = [rank for stages, rank in first_of.items() if stages]
    done: dict[int, RankRun] = {}
    with _group_of_one():
        found = _prepare(plan, load_model(model), seed)
        for place, rank in enumerate(used):
            if report is not None:
                report(place, len(used), f"rank {rank}")
            done[rank] = _run_rank(plan, rank, found, where, name, steps)
            _free(where)
    runs = [done.get(rank, RankRun((), 0)) for rank in alike]
    return OneDeviceResult(
        model=model,
        device=device_name(where),
        dtype=plan.origin.dtype,
        optimizer=name,
        steps=steps,
        stages=stages_of(plan, runs, alone=True),
        ranks=tuple(rank_step(rank, done[rank]) for rank in used),
        memory=how_counted(where),
        trace=tuple(last_slices(done[r]) if r in done else () for r in range(num_ranks(plan))),
        notes=("one step only: its time includes first allocations",) if steps == 1 else (),
    )


def planned_optimizer(plan: Plan) -> str:
    """The optimizer that the plan reckons with; AdamW where it only says how many bytes it keeps."""
    named = plan.training.optimizer
    return named if named in LEARNING_RATES else "adamw"


def _device(asked: str | None) -> torch.device:
    there = torch.cuda.is_available()
    kind = asked or ("cuda" if there else "cpu")
    if kind == "cuda" and not there:
        raise UsageError("device cuda: PyTorch finds no CUDA GPU here; use --device cpu")
    return torch.device(kind)


def _stages_on(plan: Plan, rank: int) -> tuple[int, ...]:
    return tuple(place for place, stage in enumerate(plan.stages) if rank in stage.ranks)


def _prepare(plan: Plan, source: ModelSource, seed: int) -> _Model:
    """The captured model, without memory where that can be."""
    try:
        captured = _captured(plan, source, "meta", seed)
    except ModelError:  # Its builder reads values, or it has parts that run as they are.
        captured = _captured(plan, source, "cpu", seed)
    return _Model(captured, Microbatches(plan, source, captured, seed))


def _captured(plan: Plan, source: ModelSource, device: str, seed: int) -> Captured:
    dtype = plan.origin.dtype
    built = build_training_model(source, dtype=dtype, device=device, seed=seed)
    batch = example_batch(source, plan.microbatch_size, dtype=dtype, device=device, seed=seed)
    captured = capture_for_plan(plan, built, batch)
    if device == "meta" and _has_opaque_parts(captured.module):
        raise ModelError(f"{source.name}: a part of it runs as it is")
    return captured


def _has_opaque_parts(module: fx.GraphModule) -> bool:
    return any(node.op == "call_module" for node in module.graph.nodes)


def _run_rank(
    plan: Plan, rank: int, model: _Model, device: torch.device, optimizer: str, steps: int
) -> RankRun:
    executor = make_lone_executor(
        plan, rank, _programs(plan, rank, model, device), NEIGHBOURS, device=device
    )
    stepper = rank_optimizer(plan, executor, optimizer, lr=0.0)
    alone = _Alone(executor, stepper, model.data)
    watch_peak(device)
    runs = tuple(alone.step(number) for number in range(steps))
    leaves = alone.microbatches(steps)
    there = (*executor.parameters.values(), *executor.buffers.values(), *stepper.state)
    read = (leaf for of in leaves.values() for leaf in of.values())
    aside = stepper.counters
    held = most_tensor_bytes(lambda: alone.train(leaves), (*there, *read), device, aside)
    return RankRun(runs, held, tensor_bytes=held)


def _programs(
    plan: Plan, rank: int, model: _Model, device: torch.device
) -> tuple[StageProgram, ...]:
    programs = split_stages(model.captured, [stage.layers for stage in plan.stages])
    for place in _stages_on(plan, rank):
        give_weights(programs[place].module, device)
    return programs


class _Alone:
    """One rank's steps."""

    def __init__(self, executor: Executor, optimizer: Optimizer, data: Microbatches) -> None:
        self._executor, self._optimizer, self._data = executor, optimizer, data
        self._clock = clock_of(executor.device)

    def microbatches(self, step: int) -> dict[int, dict[str, torch.Tensor]]:
        mine = self._executor
        found = self._data.of_step(step, mine.microbatches, mine.inputs, mine.device)
        return {m: dict(leaves) for m, leaves in found.items()}

    def train(self, leaves: dict[int, dict[str, torch.Tensor]]) -> None:
        self._executor.step(leaves, sync=False)
        self._optimizer.step()

    def step(self, number: int) -> StepRun:
        leaves = self.microbatches(number)
        begin = time.perf_counter()
        self._executor.step(leaves, sync=False)
        self._clock.wait()
        done = time.perf_counter()
        self._optimizer.step()
        self._clock.wait()
        end = time.perf_counter()
        return StepRun(None, self._executor.trace(), end - begin, end - done)


def _free(device: torch.device) -> None:
    gc.collect()  # Graphs are circles, and hold the weights of the rank before.
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def _group_of_one() -> Generator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()
