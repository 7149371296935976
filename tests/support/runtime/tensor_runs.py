"""Runs of plans with rank groups on a pool of ranks."""

# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import msgspec
import pytest
import torch
from torch import distributed, nn
from torch.distributed.distributed_c10d import _get_default_store

from autopart.errors import AutopartError, UsageError
from autopart.records.plan import Plan, num_ranks
from autopart.records.plan_degrees import has_several_degrees, num_processes, rank_sizes
from autopart.records.run_result import CheckResult, RunResult
from autopart.runtime.engine.run_settings import RunKeywords, RunSettings
from autopart.runtime.job.status_board import StatusBoard
from autopart.runtime.job.tensor_ranks import GroupPlace, meet_group, meet_rank_group, place_in_plan
from autopart.runtime.job.training import Place, train
from autopart.runtime.sharding.groups import TensorGroup
from autopart.runtime.sharding.rank_shards import RankShards
from tests.support.runtime.own_loop import Loop, Trained, optimizer_of, pipeline_of, trained
from tests.support.runtime.rank_pool import RankPool

_WAIT = timedelta(seconds=500)
_calls = 0


def run_groups(process: int, plan: Plan, settings: RunSettings) -> RunResult | None:
    """A whole run of a plan with a tensor degree, as one process of the pool."""
    with tensor_group(process, plan) as (at, group):
        place = Place(at.group, num_ranks(plan), torch.device("cpu"), "gloo", group, at.place)
        board = StatusBoard(distributed.HashStore(), process, num_processes(plan))
        result = train(plan, settings, place, board)
        return result if process == 0 else None


def loop_in_groups(process: int, plan: Plan, loop: Loop) -> Trained:
    """A user's training loop on a plan with a tensor degree, as one process of the pool."""
    with tensor_group(process, plan) as (_, group):
        pipeline, source = pipeline_of(plan, tensor_group=group)
        optimizer = optimizer_of(loop, pipeline.parameters.values())
        return trained(pipeline, source, plan, loop, optimizer)


def loaded_shards(process: int, plan: Plan, state: Mapping[str, torch.Tensor]) -> bool:
    """Whether whole tensors, and then shards, are loaded as this process's shards."""
    with tensor_group(process, plan) as (_, group):
        pipeline, _ = pipeline_of(plan, seed=7, tensor_group=group)
        pipeline.load_state_dict(state)
        shards = {name: own.clone() for name, own in pipeline.state_dict().items()}
        pipeline.load_state_dict({name: own + 1 for name, own in shards.items()})
        pipeline.load_state_dict(shards)
        with pytest.raises(UsageError, match="has shape"):
            pipeline.load_state_dict(
                {name: own[:1, ...] if own.ndim else own for name, own in state.items()}
            )
        again = pipeline.state_dict()
        built, _ = pipeline_of(plan, seed=0, tensor_group=group)
        wanted = built.state_dict()
        return all(
            torch.equal(again[name], shards[name]) and torch.equal(wanted[name], shards[name])
            for name in wanted
        )


@contextmanager
def tensor_group(process: int, plan: Plan) -> Iterator[tuple[GroupPlace, TensorGroup]]:
    """Where a process of the pool stands, and its tensor group. Torch's default group is its place's world.

    Where stages have degrees of their own, it has all processes.
    """
    global _calls
    _calls += 1
    processes, at = distributed.get_world_size(), place_in_plan(plan, process)
    degree = rank_sizes(plan)[at.group]
    whole = _get_default_store()
    store = distributed.PrefixStore(f"groups/{_calls}", whole)
    if has_several_degrees(plan):
        yield at, meet_group(store, at, degree, "gloo", _WAIT)
        return
    distributed.destroy_process_group()
    try:
        own = distributed.PrefixStore(f"world/{at.place}", store)
        distributed.init_process_group(
            "gloo", store=own, rank=at.group, world_size=processes // degree, timeout=_WAIT
        )
        group = meet_rank_group(store, plan, at, "gloo", _WAIT)
        yield at, group
    finally:
        distributed.destroy_process_group()
        distributed.init_process_group(
            "gloo",
            store=distributed.PrefixStore(f"after/{_calls}", whole),
            rank=process,
            world_size=processes,
            timeout=_WAIT,
        )


def error_of_groups(process: int, plan: Plan, settings: RunSettings) -> str:
    """The error of a run; "" without one."""
    try:
        run_groups(process, plan, settings)
    except AutopartError as error:
        return str(error)
    return ""


def run_without_group_sums(process: int, plan: Plan, settings: RunSettings) -> str:
    """The error of a checked run whose partial gradients are not summed over the tensor group."""

    def nothing(self: RankShards, parameters: Mapping[str, nn.Parameter]) -> None:
        """Leave each gradient as it is."""

    kept, RankShards.sum_gradients = RankShards.sum_gradients, nothing
    try:
        return error_of_groups(process, plan, settings)
    finally:
        RankShards.sum_gradients = kept


def checked(pool: RankPool, plan: Plan, **options: object) -> CheckResult:
    """The check after two steps on a pool of ranks, with further options of a run; it raises if anything differs from the plain model."""
    keywords: RunKeywords = {"steps": 2, "check": True, **options}  # pyright: ignore
    settings = RunSettings(model=plan.origin.model, **keywords)
    result = pool.call(run_groups, plan, settings)[0]
    assert result is not None and result.check is not None
    assert result.check.losses <= 1e-5 and result.check.gradients <= 1e-5
    assert result.check.num_parameters > 5
    return result.check


def with_policy(plan: Plan, policy: str) -> Plan:
    """The plan with all layers except the loss under the policy."""
    stages = tuple(
        msgspec.structs.replace(s, **{policy: tuple(n for n in s.layers if n != "loss")})
        for s in plan.stages
    )
    return msgspec.structs.replace(plan, stages=stages)
