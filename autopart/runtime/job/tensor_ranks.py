"""The processes of a plan with tensor degrees: one world per place in the tensor groups, or one for all.

With degree t process p has place p mod t in tensor group p // t. All processes with one place form a world of
their own: it runs the plan as if each group were one rank, on its shards. So sends, gradient sums and
ZeRO-1 stay among equal places. Only collectives inside layers cross from world to world.

With several degrees some places exist in some groups only. Then all processes are in one world
(`autopart/runtime/engine/group_part.py`).
"""

# pyright: reportPrivateImportUsage=false, reportPrivateUsage=false

import math
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Literal, NamedTuple, cast

import torch
from torch import distributed
from torch.utils._python_dispatch import _disable_current_modes

from autopart.errors import RunError, UsageError
from autopart.records.plan import Plan, num_ranks
from autopart.records.plan_degrees import (
    degrees_name,
    gpus_of_ranks,
    group_of_rank,
    has_several_degrees,
    num_processes,
    rank_of_process,
    rank_sizes,
)
from autopart.records.rank_group import Group, degrees_of, group_size
from autopart.runtime.engine.failures import LostRank
from autopart.runtime.engine.transfers import with_other_rank
from autopart.runtime.sharding.groups import Arrival, ProcessRanks, TensorGroup
from autopart.runtime.sharding.shard_groups import ProcessShards, ShardGroup
from autopart.text import counted


class GroupPlace(NamedTuple):
    """Where a process stands among the tensor groups."""

    group: int
    """Its tensor group, which is a rank of the plan."""
    place: int
    """Its place in the group, from 0."""


def init_tensor_ranks(
    plan: Plan, *, backend: Literal["gloo", "nccl"] | None = None, timeout: float = 600.0
) -> TensorGroup:
    """Start torch.distributed for a plan with a tensor degree, and return this process's tensor group.

    Call it in each process of torchrun, in place of ``init_process_group``; `make_pipeline` takes the result.
    Torch's default process group then has one process per rank of the plan: those with this process's place
    in their tensor groups. Where stages have degrees of their own, it has all processes. `backend` is NCCL where CUDA is there. `timeout` bounds each wait, in seconds.

    Raises UsageError if torchrun started another number of processes than the plan's GPUs.
    """
    wanted = num_processes(plan)
    backend = backend or ("nccl" if torch.cuda.is_available() else "gloo")
    given = os.environ.get("WORLD_SIZE", "1")
    if given != str(wanted):
        raise UsageError(
            f"the plan is for {counted(wanted, 'process', 'processes')}: {counted(num_ranks(plan), 'rank')} with "
            f"{degrees_name(plan)}; torchrun started {given}"
        )
    wait = timedelta(seconds=timeout)
    store, process, _ = next(distributed.rendezvous("env://", timeout=wait))
    at, own = place_in_plan(plan, process), world_of(plan, process)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if backend == "nccl" else "gloo",
        store=distributed.PrefixStore(own.name, store),
        rank=own.number,
        world_size=own.size,
        timeout=wait,
    )
    return meet_rank_group(store, plan, at, backend, wait)


class OwnWorld(NamedTuple):
    """The processes in torch's default process group of one process."""

    name: str
    number: int
    """The process's own number there."""
    size: int


def world_of(plan: Plan, process: int) -> OwnWorld:
    """Return the world of a process: equal places with one tensor degree, all processes with several."""
    at = place_in_plan(plan, process)
    if has_several_degrees(plan):
        return OwnWorld("group", process, num_processes(plan))
    return OwnWorld(f"group/{at.place}", at.group, num_ranks(plan))


def place_in_plan(plan: Plan, process: int) -> GroupPlace:
    """Return where process number `process` stands in a plan with one tensor degree or several."""
    rank = rank_of_process(plan, process)
    return GroupPlace(rank, process - gpus_of_ranks(rank_sizes(plan))[rank].start)


def lost_process(error: LostRank, place: int, degree: int) -> int | None:
    """Return the process that is gone; None where it may be any.

    The world of a place counts tensor groups. All else counts processes.
    """
    return None if error.other_rank is None else error.other_rank * degree + place


def meet_group(
    store: distributed.Store,
    at: GroupPlace,
    degree: int,
    backend: str,
    timeout: timedelta,
) -> TensorGroup:
    """Return this process's tensor group. Collective over its `degree` processes.

    Torch's default process group is the world of equal places. The tensor group stands beside it.
    """
    own = distributed.PrefixStore(f"tensor/{at.group}", store)
    return _MortalRanks(_process_group(own, at.place, degree, backend, timeout))


def meet_rank_group(
    store: distributed.Store, plan: Plan, at: GroupPlace, backend: str, timeout: timedelta
) -> TensorGroup:
    """Return the rank group of a process, and in it those that share layers, or samples, with it.

    Collective over the rank's processes.
    """
    group = group_of_rank(plan, at.group)
    if not isinstance(group, Group) or group.data == 1:
        return _meet_layers(store, at, degrees_of(group), backend, timeout)
    whole = meet_group(store, at, group_size(group), backend, timeout)
    samples, place = divmod(at.place, group_size(group) // group.data)
    own = distributed.PrefixStore(f"samples/{at.group}/{place}", store)
    shares = _process_group(own, samples, group.data, backend, timeout)
    layers = whole
    if math.prod(degrees_of(group)) > 1:
        own = distributed.PrefixStore(f"tensor/{at.group}/{samples}", store)
        layers = _meet_layers(own, GroupPlace(0, place), degrees_of(group), backend, timeout)
    return _WithSamples(whole, layers, ProcessShards(shares, _with_samples))


def _meet_layers(
    store: distributed.Store,
    at: GroupPlace,
    degrees: tuple[int, int, int],
    backend: str,
    timeout: timedelta,
) -> TensorGroup:
    """Return the processes that share layers, by tensors, positions or experts, with a part for each degree."""
    size = math.prod(degrees)
    stride = 1
    own = distributed.PrefixStore(f"tensor/{at.group}", store)
    parts: dict[tuple[int, int], TensorGroup] = {}
    for degree in degrees:
        if 1 < degree < size:
            number = at.place // stride % degree
            name = f"part/{stride}/{at.place - number * stride}"
            part = distributed.PrefixStore(name, own)
            made = _process_group(part, number, degree, backend, timeout)
            parts[stride, degree] = _MortalRanks(made)
        stride *= degree
    return _MortalRanks(_process_group(own, at.place, size, backend, timeout), parts)


def _process_group(
    store: distributed.Store, place: int, size: int, backend: str, timeout: timedelta
) -> distributed.ProcessGroup:
    if backend == "nccl":
        options = distributed.ProcessGroupNCCL.Options()
        options._timeout = timeout
        made = distributed.ProcessGroupNCCL(store, place, size, options)
    else:
        made = distributed.ProcessGroupGloo(store, place, size, timeout)
    # Torch's functions take a backend where they take a group. Only its type says otherwise.
    return cast("distributed.ProcessGroup", made)


def _with_samples(exchange: Callable[[], object]) -> object:
    # gloo scatters by an all-reduce of copies. A count of tensors leaves them out, as it leaves out all scratch memory.
    with _disable_current_modes():
        return with_other_rank(exchange, None, "a collective of its rank group")


class _WithSamples(TensorGroup):
    """A rank group whose processes share samples; some of them may share layers."""

    def __init__(self, whole: TensorGroup, layers: TensorGroup, samples: ShardGroup) -> None:
        self._whole, self._layers, self._samples = whole, layers, samples

    @property
    def of_layers(self) -> TensorGroup:
        """Those with the same samples."""
        return self._layers

    @property
    def of_samples(self) -> ShardGroup:
        """Those with other samples, and the same tensor shard."""
        return self._samples

    def rank(self) -> int:
        """Return the place in the rank group."""
        return self._whole.rank()

    def all_reduce(self, tensor: torch.Tensor, operation: str) -> torch.Tensor:
        """Return the sum or maximum over the rank group."""
        return self._whole.all_reduce(tensor, operation)

    def all_gather(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the tensor of each process of the rank group."""
        return self._whole.all_gather(tensor)

    def reduce_scatter(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the sum over the rank group of the part that belongs to the caller."""
        return self._whole.reduce_scatter(parts)

    def all_to_all(
        self, parts: Sequence[torch.Tensor], sizes: Sequence[int]
    ) -> Sequence[torch.Tensor]:
        """Return the part for the caller from every process of the rank group."""
        return self._whole.all_to_all(parts, sizes)

    def shift(self, tensor: torch.Tensor, by: int) -> Arrival:
        """Hand a tensor on around the rank group."""
        return self._whole.shift(tensor, by)

    def part(self, stride: int, degree: int) -> TensorGroup:
        """Return a part of those with the same samples."""
        return self._layers.part(stride, degree)


_WHAT = "a collective of its tensor group"


class _MortalRanks(ProcessRanks):
    """Processes any of which may be gone. Then LostRank is raised."""

    def all_reduce(self, tensor: torch.Tensor, operation: str) -> torch.Tensor:
        """Return the ranks' sum or maximum."""
        return with_other_rank(
            lambda: super(_MortalRanks, self).all_reduce(tensor, operation), None, _WHAT
        )

    def all_gather(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return every rank's tensor."""
        return with_other_rank(lambda: super(_MortalRanks, self).all_gather(tensor), None, _WHAT)

    def reduce_scatter(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the sum of the caller's part."""
        return with_other_rank(lambda: super(_MortalRanks, self).reduce_scatter(parts), None, _WHAT)

    def all_to_all(
        self, parts: Sequence[torch.Tensor], sizes: Sequence[int]
    ) -> Sequence[torch.Tensor]:
        """Return the part for this process from every rank."""
        return with_other_rank(
            lambda: super(_MortalRanks, self).all_to_all(parts, sizes), None, _WHAT
        )

    def shift(self, tensor: torch.Tensor, by: int) -> Arrival:
        """Hand a tensor on around the ranks."""
        arrived = with_other_rank(lambda: super(_MortalRanks, self).shift(tensor, by), None, _WHAT)
        return lambda: with_other_rank(arrived, None, _WHAT)


def agree_in_group(
    store: distributed.Store, at: GroupPlace, group: TensorGroup, said: str, device: torch.device
) -> None:
    """Raise RunError where a process of the group has another plan, or other options, than its first.

    Collective over the group, which communicates on `device`.
    """
    store.set(f"agreed/{at.group}/{at.place}", said)
    first = store.get(f"agreed/{at.group}/0").decode()
    differs = torch.tensor([float(first != said)], device=device)
    if group.all_reduce(differs, "max").item():
        raise RunError(
            f"the processes of tensor group {at.group} were started with different plans or options; "
            "start all with the same"
        )
