"""Runs a plan's ranks one after the other on one device, with fake neighbours.

So one device can check a plan for many GPUs: its stage times, and each rank's peak memory. Each
rank has the microbatches in flight that its order implies. Only one rank's stages have weights at a
time. The weights are random if the model can be built without memory.

With a tensor degree a rank is the first GPU of its tensor group. It runs its local graph, and collectives
are left out, as in a profile: they take no time and no memory.
"""

# pyright: reportPrivateImportUsage=false

import gc
import math
import time
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import distributed

from autopart.cost.uneven_experts import exchanged
from autopart.errors import ModelError, UsageError
from autopart.fidelity.pace import notes_on_pace
from autopart.records.group_choice import load_of
from autopart.records.group_variants import LayerCollectives
from autopart.records.plan import Plan, cast_of, num_ranks
from autopart.records.rank_group import (
    Group,
    degrees_of,
    expert_degree,
    samples_per_gpu,
)
from autopart.records.run_result import OneDeviceResult
from autopart.runtime.capture.call_outputs import calls_opaque_code
from autopart.runtime.capture.capture import Captured
from autopart.runtime.capture.stage_modules import StageProgram, split_stages
from autopart.runtime.engine.assembly import make_lone_executor
from autopart.runtime.engine.executor import Executor
from autopart.runtime.engine.group_part import NO_GROUPS, GroupPart
from autopart.runtime.engine.local_model import data_part
from autopart.runtime.engine.microbatches import Microbatches
from autopart.runtime.engine.plan_match import capture_for_plan
from autopart.runtime.engine.rank_optimizer import rank_optimizer
from autopart.runtime.job.fake_neighbours import NEIGHBOURS, FakePartners, give_weights
from autopart.runtime.job.one_device_notes import notes_of
from autopart.runtime.job.rank_results import (
    RankRun,
    StepRun,
    device_name,
    last_slices,
    rank_step,
    stages_of,
)
from autopart.runtime.job.training import Report
from autopart.runtime.measuring.clock import clock_of
from autopart.runtime.measuring.pace import PaceMeter, pace_of
from autopart.runtime.measuring.peak_memory import watch_peak
from autopart.runtime.measuring.tensor_bytes import how_counted, most_tensor_bytes
from autopart.runtime.models.model import build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from autopart.runtime.sharding.counted import layer_collectives
from autopart.runtime.sharding.group_graphs import graphs_of, lone_place
from autopart.runtime.sharding.shard_groups import LonePlace
from autopart.runtime.update.optimizer import LEARNING_RATES, Optimizer
from autopart.zoo.source import ModelSource


class _Model(NamedTuple):
    """The captured model, and the source of its input data."""

    captured: Captured
    """With a tensor degree the local graph of the first rank in a group."""
    data: Microbatches
    collectives: tuple[LayerCollectives, ...]
    """The collectives that are left out; empty with tensor degree 1."""
    partners: FakePartners
    """Stand for ranks that lend stash, or keep it."""
    group: GroupPart
    """The part of a process whose rank shares samples and state, without the others."""


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
    """Run `steps` steps for each rank alone. If ranks have equal stages, only the first is run.

    `optimizer` defaults to the plan's own; its learning rate is 0. `device` is cpu or cuda, by
    default cuda if there is one. `report` is told about each rank. During the call this process is
    the only member of the default process group. Raises ModelError and PlanError as a run does,
    UsageError for a missing device.
    """
    where = _device(device)
    name = optimizer or planned_optimizer(plan)
    first_of: dict[tuple[int, ...], int] = {}
    alike = [first_of.setdefault(_stages_on(plan, r), r) for r in range(num_ranks(plan))]
    used = [rank for stages, rank in first_of.items() if stages]
    done: dict[int, RankRun] = {}
    with _group_of_one(), lone_place(plan.group, _load(plan)):
        found = _prepare(plan, load_model(model), seed)
        # A rank that keeps another's stash runs after it: it then knows the stash's size.
        for place, rank in enumerate(sorted(used, key=lambda rank: _stages_on(plan, rank))):
            if report is not None:
                report(place, len(used), f"rank {rank}")
            done[rank] = _run_rank(plan, rank, found, where, name, steps)
            _free(where)
    runs = [done.get(rank, RankRun((), 0)) for rank in alike]
    ranks = tuple(rank_step(rank, done[rank]) for rank in used)
    return OneDeviceResult(
        model=model,
        device=device_name(where),
        dtype=plan.origin.dtype,
        optimizer=name,
        steps=steps,
        stages=stages_of(plan, runs, alone=True),
        ranks=ranks,
        memory=how_counted(where),
        trace=tuple(last_slices(done[r]) if r in done else () for r in range(num_ranks(plan))),
        collectives=found.collectives,
        notes=(*notes_of(plan, steps), *notes_on_pace(plan, ranks)),
    )


def _load(plan: Plan) -> float:
    """The load of the rank's experts: the plan's, where it assumes one for all layers, else the mean."""
    assumed = load_of(plan.demands.group, plan.group)
    return min(assumed, expert_degree(plan.group)) if isinstance(assumed, float) else 1.0


def planned_optimizer(plan: Plan) -> str:
    """The plan's optimizer; adamw if the plan gives only its bytes."""
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
    """The captured model, without memory for weights if possible."""
    try:
        captured = _captured(plan, source, "meta", seed)
    except ModelError:  # Its builder reads values, or some modules are not captured.
        captured = _captured(plan, source, "cpu", seed)
    collectives: tuple[LayerCollectives, ...] = ()
    group = NO_GROUPS
    if isinstance(plan.group, Group):
        if math.prod(degrees_of(plan.group)) > 1:
            graphs = graphs_of(captured, plan.group)
            captured = graphs.local(0)
            balanced = layer_collectives(graphs, captured)
            collectives = tuple(exchanged(own, _load(plan)) for own in balanced)
        if plan.group.data > 1:
            group = GroupPart(data=data_part(plan.group, captured, LonePlace(plan.group.data)))
    data = Microbatches(plan, source, captured, seed)
    return _Model(captured, data, collectives, FakePartners(), group)


def _captured(plan: Plan, source: ModelSource, device: str, seed: int) -> Captured:
    dtype = cast_of(plan)
    built = build_training_model(source, dtype=dtype, device=device, seed=seed)
    batch = example_batch(
        source,
        samples_per_gpu(plan.microbatch_size, plan.group),
        dtype=dtype,
        device=device,
        seed=seed,
    )
    captured = capture_for_plan(plan, built, batch)
    if device == "meta" and calls_opaque_code(captured.module):
        raise ModelError(f"{source.name}: some modules are not captured")
    return captured


def _run_rank(
    plan: Plan, rank: int, model: _Model, device: torch.device, optimizer: str, steps: int
) -> RankRun:
    programs = _programs(plan, rank, model, device)
    partner = model.partners.of_stages(_stages_on(plan, rank), len(plan.stages))
    executor = make_lone_executor(
        plan, rank, programs, NEIGHBOURS, device=device, partner=partner, group=model.group
    )
    stepper = rank_optimizer(plan, executor, optimizer, lr=0.0)
    lone = _LoneRank(executor, stepper, model.data)
    pace = PaceMeter(device)
    pace.sample()
    watch_peak(device)
    runs: list[StepRun] = []
    for number in range(steps):
        runs.append(lone.step(number))
        pace.sample()
    # One more step counts tensor bytes.
    leaves = lone.microbatches(steps)
    own = (*executor.parameters.values(), *executor.buffers.values(), *executor.borrowed)
    there = (*own, *stepper.state)
    read = (leaf for of in leaves.values() for leaf in of.values())
    aside = stepper.counters
    peak = most_tensor_bytes(lambda: lone.train(leaves), (*there, *read), device, aside)
    return RankRun(tuple(runs), peak, tensor_bytes=peak, pace=pace_of(pace.samples, device))


def _programs(
    plan: Plan, rank: int, model: _Model, device: torch.device
) -> tuple[StageProgram, ...]:
    programs = split_stages(model.captured, [stage.layers for stage in plan.stages])
    give_weights([programs[place].module for place in _stages_on(plan, rank)], device)
    return programs


class _LoneRank:
    """Runs one rank's steps without other ranks."""

    def __init__(self, executor: Executor, optimizer: Optimizer, data: Microbatches) -> None:
        self._executor, self._optimizer, self._data = executor, optimizer, data
        self._clock = clock_of(executor.device)

    def microbatches(self, step: int) -> dict[int, dict[str, torch.Tensor]]:
        mine = self._executor
        found = self._data.of_step(step, mine.microbatches, mine.inputs, mine.device)
        return {m: dict(leaves) for m, leaves in found.items()}

    def train(self, leaves: dict[int, dict[str, torch.Tensor]]) -> None:
        self._run(leaves)
        self._optimizer.step()

    def _run(self, leaves: dict[int, dict[str, torch.Tensor]]) -> None:
        """All actions. Gradients that wait for the step's end are scattered, and nothing is summed over replicas."""
        shards = self._executor.shards
        with nullcontext() if shards is None else shards.exchanging():
            self._executor.step(leaves, sync=shards is not None)

    def step(self, number: int) -> StepRun:
        leaves = self.microbatches(number)
        begin = time.perf_counter()
        self._run(leaves)
        self._clock.wait()
        done = time.perf_counter()
        self._optimizer.step()
        self._clock.wait()
        end = time.perf_counter()
        return StepRun(None, self._executor.trace(), end - begin, end - done)


def _free(device: torch.device) -> None:
    gc.collect()  # Graphs are reference cycles, and keep the previous rank's weights.
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def _group_of_one() -> Generator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()
