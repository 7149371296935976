"""Functions for a pool of ranks; each runs on all ranks at once."""

import gc
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, get_schedule_class

from autopart.errors import AutopartError, RunError
from autopart.records.plan import Plan
from autopart.records.run_result import CheckResult, RunResult
from autopart.runtime.capture.capture import batch_leaves
from autopart.runtime.capture.stage_modules import StageProgram, TensorMeta, split_stages
from autopart.runtime.checking import check as checks
from autopart.runtime.checking.reference_run import ReferenceRun
from autopart.runtime.checking.verdict import outcome
from autopart.runtime.engine import asynchronous
from autopart.runtime.engine.assembly import make_executor
from autopart.runtime.engine.pipeline import Pipeline, make_pipeline
from autopart.runtime.engine.run_settings import RunSettings
from autopart.runtime.engine.stage import TorchStage, stage_parameters
from autopart.runtime.job.status_board import StatusBoard
from autopart.runtime.job.training import Place, train
from autopart.runtime.models.host_generators import HostGenerators, moved
from autopart.runtime.models.model import build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from autopart.runtime.update.gradient_sum import GradientSum, Holders
from autopart.runtime.update.optimizer import Optimizer
from autopart.runtime.update.zero_shards import ZeroSharding
from tests.support.runtime.captured_once import captured_once

Gradients = dict[str, torch.Tensor]


def run(rank: int, plan: Plan, settings: RunSettings) -> RunResult | None:
    """A whole run, as one rank in the pool's process group."""
    size = distributed.get_world_size()
    place = Place(rank, size, torch.device("cpu"), "gloo")
    return train(plan, settings, place, StatusBoard(distributed.HashStore(), rank, size))


def run_from(rank: int, plan: Plan, settings: RunSettings, *of_ranks: int) -> str:
    """The notes of a checked run, or its error; rank r's generators start with seed `of_ranks[r]`.

    Raises AssertionError where the run does not leave the generators as they were.
    """
    random.seed(of_ranks[rank])
    np.random.seed(of_ranks[rank])
    before = HostGenerators().states()
    try:
        result = run(rank, plan, settings)
    except AutopartError as error:
        return str(error)
    apart = moved(before, HostGenerators().states())
    assert not apart, apart
    return "; ".join(result.check.notes) if result and result.check else ""


def reported(rank: int, plan: Plan, settings: RunSettings) -> list[tuple[int, int, str]]:
    """The progress reports of a run on this rank."""
    size, told = distributed.get_world_size(), list[tuple[int, int, str]]()
    place = Place(rank, size, torch.device("cpu"), "gloo")
    status_board = StatusBoard(distributed.HashStore(), rank, size)
    train(plan, settings, place, status_board, lambda *of: told.append(of))
    assert status_board.last is not None and status_board.last.speed > 0
    return told


def run_without_sums(rank: int, plan: Plan, settings: RunSettings) -> str:
    """The error of a checked run whose gradients are not summed over their holders."""
    kept, GradientSum.run = GradientSum.run, lambda self: None
    try:
        return complaint_of(rank, plan, settings)
    finally:
        GradientSum.run = kept


def run_with_double_loss(rank: int, plan: Plan, settings: RunSettings) -> str:
    """The error of a checked run whose loss is slightly too large in backward."""
    kept = TorchStage.backward
    TorchStage.backward = lambda self, m, given, scale, **how: kept(
        self, m, given, scale * 1.0001, **how
    )
    try:
        return complaint_of(rank, plan, settings)
    finally:
        TorchStage.backward = kept


def run_with_still_older_weights(rank: int, plan: Plan, settings: RunSettings) -> str:
    """The error of a checked run without flushes whose weights are one update too old."""
    kept = asynchronous.weight_version
    asynchronous.weight_version = lambda *of: max(0, kept(*of) - 1)
    try:
        return complaint_of(rank, plan, settings)
    finally:
        asynchronous.weight_version = kept


def run_with_longer_predictions(rank: int, plan: Plan, settings: RunSettings) -> str:
    """The error of a checked run that predicts the weights of its forwards one update too far."""
    kept = asynchronous.Distances
    asynchronous.Distances = lambda forward, backward: kept(forward + 1, backward)
    try:
        return complaint_of(rank, plan, settings)
    finally:
        asynchronous.Distances = kept


def live_parameters(rank: int, plan: Plan, settings: RunSettings) -> tuple[int, int]:
    """Parameter elements that live in the middle of a run: all new ones, and its own stage's."""
    seen: list[tuple[int, int]] = []
    kept = TorchStage.forward
    gc.collect()
    before = {id(parameter): parameter for parameter in _live_parameters()}

    def counting(self: TorchStage, *arguments: Any) -> Any:
        live = [p for p in _live_parameters() if id(p) not in before]
        own = stage_parameters(self.program).values()
        seen.append((sum(p.numel() for p in live), sum(p.numel() for p in own)))
        return kept(self, *arguments)

    TorchStage.forward = counting
    try:
        run(rank, plan, settings)
    finally:
        TorchStage.forward = kept
    return seen[0]


def _live_parameters() -> list[nn.Parameter]:
    return [o for o in gc.get_objects() if type(o) is nn.Parameter and not o.is_meta]


def sent_dtypes(rank: int, plan: Plan, settings: RunSettings) -> list[str]:
    """The dtypes of tensors that this rank's stages send in a run."""
    seen: set[str] = set()
    kept = TorchStage.forward

    def noting(self: TorchStage, *arguments: Any) -> Any:
        outputs = kept(self, *arguments)
        seen.update(str(output.dtype) for output in outputs)
        return outputs

    TorchStage.forward = noting
    try:
        run(rank, plan, settings)
    finally:
        TorchStage.forward = kept
    return sorted(seen)


def complaint_of(rank: int, plan: Plan, settings: RunSettings) -> str:
    """The error of a run on this rank, empty without one."""
    try:
        run(rank, plan, settings)
    except AutopartError as error:
        return str(error)
    return ""


class ByName(nn.Module):
    """Calls a stage's module with batch tensors by name, as torch's schedules pass them."""

    def __init__(self, program: StageProgram) -> None:
        super().__init__()
        self.module, self.inputs = program.module, program.inputs

    def forward(self, *received: torch.Tensor, **leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.module(*received, *(leaves[f"leaf_{name}"] for name in self.inputs))


def ours_and_torchs(rank: int, plan: Plan, name: str = "1F1B") -> tuple[Gradients, Gradients]:
    """Gradients of this rank's stages from our executor, and from torch's schedule called
    `name`."""
    source, count, dtype = load_model(plan.origin.model), plan.num_microbatches, plan.origin.dtype
    batches = [
        example_batch(source, plan.microbatch_size, dtype=dtype, seed=m) for m in range(count)
    ]
    captured = captured_once(build_training_model(source, dtype=dtype), batches[0])
    leaves = [batch_leaves(captured, batch) for batch in batches]

    def programs() -> tuple[StageProgram, ...]:
        return split_stages(captured, [stage.layers for stage in plan.stages])

    executor = make_executor(plan, programs(), device=torch.device("cpu"))
    executor.step(dict(enumerate(leaves)))
    ours = _taken(executor.parameters)
    # Cut again: the executor has put split operations into graphs of stages with split backwards.
    stages = {i: p for i, p in enumerate(programs()) if plan.stages[i].ranks == (rank,)}
    _run_torchs_schedule(name, stages, len(plan.stages), leaves)
    return ours, _taken({n: p for of in stages.values() for n, p in stage_parameters(of).items()})


def _run_torchs_schedule(
    name: str, stages: dict[int, StageProgram], num_stages: int, leaves: Sequence[Gradients]
) -> None:
    def examples(metas: Sequence[TensorMeta]) -> tuple[torch.Tensor, ...]:
        return tuple(
            torch.empty(m.shape, dtype=m.dtype).requires_grad_(m.requires_grad) for m in metas
        )

    mine = [
        PipelineStage(
            ByName(program),
            index,
            num_stages,
            torch.device("cpu"),
            input_args=examples(program.received_meta),
            output_args=examples(program.output_meta),
        )
        for index, program in stages.items()
    ]
    kind, count = get_schedule_class(name), len(leaves)
    several = issubclass(kind, PipelineScheduleMulti)
    schedule = kind(mine if several else mine[0], count, loss_fn=lambda output, _: output[0])
    read = {name for program in stages.values() for name in program.inputs}
    whole = {f"leaf_{name}": torch.cat([of[name] for of in leaves]) for name in sorted(read)}
    schedule.step(target=torch.zeros(count), losses=[], return_outputs=False, **whole)


def _taken(parameters: dict[str, nn.Parameter]) -> Gradients:
    found: Gradients = {}
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        found[name], parameter.grad = parameter.grad, None
    return found


def summed_gradients(
    rank: int, holders: Sequence[Holders], gradients: Sequence[dict[str, torch.Tensor | None]]
) -> dict[str, torch.Tensor | None]:
    """Each rank's gradients after the sum; each starts with its own `gradients`."""
    mine = gradients[rank]
    own = {n for h in holders if rank in h.ranks for n in h.names}
    shapes = {n: g for of in gradients for n, g in of.items() if g is not None}
    parameters = {
        n: torch.nn.Parameter(torch.zeros_like(shapes.get(n, torch.zeros(2)))) for n in own
    }
    for name, parameter in parameters.items():
        parameter.grad = mine.get(name)
    GradientSum(holders, parameters, rank).run()
    return {name: parameter.grad for name, parameter in parameters.items()}


Values = dict[str, list[float]]


def shared_and_plain_steps(
    rank: int, name: str, dtype: str = "float32", is_hosted: bool = False
) -> tuple[int, Values, Values]:
    """Three steps on parameters that all ranks have, with ZeRO sharding and without.

    Returns the number of elements that this rank steps, and the parameters in both cases.
    """
    torch.manual_seed(0)
    values = {"a": torch.randn(3, 5), "b": torch.randn(2)}
    ours, plain = (
        {n: nn.Parameter(v.to(getattr(torch, dtype))) for n, v in values.items()} for _ in range(2)
    )
    everyone = tuple(range(distributed.get_world_size()))
    sharding = ZeroSharding(GradientSum([Holders(everyone, ("a", "b"))], ours, rank).shared)
    hosted = list(ours.values()) if is_hosted else []
    optimizers = [
        Optimizer(name, list(ours.values()), 0.1, sharding=sharding, hosted=hosted),
        Optimizer(name, list(plain.values()), 0.1),
    ]
    for _ in range(3):
        for n, value in values.items():
            ours[n].grad, plain[n].grad = (torch.sin(value).to(ours[n].dtype) for _ in range(2))
        for optimizer in optimizers:
            optimizer.step()
    stepped = sum(p.stop - p.start for p in sharding.own_ranges(list(ours.values())))
    mine, theirs = ({n: p.flatten().tolist() for n, p in of.items()} for of in (ours, plain))
    return stepped, mine, theirs


def saved_and_resumed(rank: int, plans: Sequence[Plan]) -> tuple[list[float], list[float]]:
    """Losses of one step under each plan, and of as many steps under the last plan alone.

    Each plan continues from the state that all ranks saved under the previous plan.
    """
    source = load_model(plans[0].origin.model)
    of = plans[0]
    batches = {
        m: example_batch(source, of.microbatch_size, dtype=of.origin.dtype, seed=m)
        for m in range(of.num_microbatches)
    }

    def pipeline_of(plan: Plan) -> tuple[Pipeline, Optimizer]:
        model = build_training_model(source, dtype=of.origin.dtype)
        pipeline = make_pipeline(plan, model.model, batches[0], loss_fn=model.loss_fn)
        return pipeline, pipeline.make_optimizer("adamw", lr=1e-2)

    def step(pipeline: Pipeline, optimizer: Optimizer) -> float:
        loss = pipeline.step(batches).item()
        optimizer.step()
        return loss

    losses: list[float] = []
    saved: list[dict[str, torch.Tensor]] = [{}, {}]
    for plan in plans:
        pipeline, optimizer = pipeline_of(plan)
        if losses:
            pipeline.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1], pipeline.parameters)
        losses.append(step(pipeline, optimizer))
        mine = [pipeline.state_dict(), optimizer.state_dict(pipeline.parameters)]
        everyone = [mine] * distributed.get_world_size()
        distributed.all_gather_object(everyone, mine)
        saved = [{n: t for one in everyone for n, t in one[kind].items()} for kind in range(2)]
    straight = pipeline_of(plans[-1])
    return losses, [step(*straight) for _ in plans]


def checked(
    rank: int,
    reference: ReferenceRun,
    tensors: Sequence[dict[str, dict[str, torch.Tensor]]],
    losses: Sequence[float],
    optimizer: str,
) -> CheckResult | str | None:
    """Runs the check on given tensors of each rank; returns its result or its error."""
    steps = len(reference.losses)
    check = (
        checks.CheckRecord(reference, "float32", steps, optimizer, lr=0.1) if rank == 0 else None
    )
    mine = tensors[rank]
    checks.compare_gradients(check, mine["gradients"])
    checks.compare_first_update(check, mine["first"])
    checks.compare_parameters(check, mine["last"])
    checks.compare_buffers(check, mine["buffers"])
    if check is None:
        return None
    try:
        return outcome(check, losses, 0, ())
    except RunError as error:
        return str(error)
