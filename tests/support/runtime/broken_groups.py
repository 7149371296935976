"""Faults of rank groups: tensor, context and expert ranks, and ranks that share state."""

from typing import Any

import torch

from autopart.records.plan import Plan
from autopart.runtime.engine.run_settings import RunSettings
from autopart.runtime.sharding import collectives
from autopart.runtime.sharding.context import exchange, expert_exchange, ring
from autopart.runtime.sharding.groups import ProcessRanks
from autopart.runtime.sharding.rank_shards import RankShards
from autopart.runtime.sharding.shard_groups import ProcessShards
from autopart.runtime.update.state_units import StateUnit
from tests.support.runtime.faults import Faults, Replace, collector, with_fault
from tests.support.runtime.tensor_runs import error_of_groups

GROUP_FAULTS: Faults = {}
_fault = collector(GROUP_FAULTS)


def complaint_of_groups_with(process: int, plan: Plan, settings: RunSettings, fault: str) -> str:
    """The error of a run with a broken executor on this process, empty without one."""
    chosen = GROUP_FAULTS[fault] if fault else None
    return with_fault(chosen, error_of_groups, process, plan, settings)


@_fault
def _missing_sum_of_partial_results(replace: Replace) -> None:
    replace(collectives._Reduce, "forward", staticmethod(lambda ctx, x, group: x.view_as(x)))


@_fault
def _missing_sum_of_gradients_of_a_layer_s_input(replace: Replace) -> None:
    replace(collectives._Copy, "backward", staticmethod(lambda ctx, gradient: (gradient, None)))


@_fault
def _missing_sum_of_partial_gradients(replace: Replace) -> None:
    replace(RankShards, "sum_gradients", lambda self, parameters: None)


@_fault
def _sequence_parts_that_are_not_summed(replace: Replace) -> None:
    def own(self: ProcessRanks, parts: Any) -> torch.Tensor:
        return parts[self.rank()].clone()

    replace(ProcessRanks, "reduce_scatter", own)


@_fault
def _sequence_parts_in_another_order(replace: Replace) -> None:
    gather = ProcessRanks.all_gather
    replace(ProcessRanks, "all_gather", lambda self, x: list(gather(self, x))[::-1])


@_fault
def _chunks_of_positions_in_another_order(replace: Replace) -> None:
    put = exchange.put_chunks

    def swapped(whole: Any, own: Any, place: Any, degree: int, rank: int, group: str) -> None:
        put(whole, own, place, degree, degree - 1 - rank, group)

    replace(exchange, "put_chunks", swapped)


@_fault
def _gradients_of_gathered_positions_that_are_not_summed(replace: Replace) -> None:
    def own(ctx: Any, *given: torch.Tensor) -> Any:
        dims, outers, degree, group = ctx.places
        rank = exchange.group_named(group).rank()
        parts = (
            exchange.own_chunks(x, (d, o), degree, rank, group)
            for x, d, o in zip(given, dims, outers, strict=True)
        )
        return None, None, None, None, *parts

    replace(exchange._GatherPositions, "backward", staticmethod(own))


@_fault
def _mean_of_the_turns_of_a_ring(replace: Replace) -> None:
    merge = ring._merge

    def evenly(output: Any, logarithm: Any, found: Any, own: Any) -> None:
        merge(output, logarithm, found, torch.where(logarithm.isinf(), own, logarithm))

    replace(ring, "_merge", evenly)


@_fault
def _block_of_keys_that_stays(replace: Replace) -> None:
    """The ring sends nothing, so that each rank sees its own block in all turns."""

    def stay(self: ProcessRanks, tensor: torch.Tensor, by: int) -> Any:
        own = tensor.clone()
        return lambda: own

    replace(ProcessRanks, "shift", stay)


@_fault
def _lost_gradients_of_a_block_of_keys(replace: Replace) -> None:
    """The last message of each backward has no numbers. It is an even one: blocks and gradients take turns."""
    shift, calls = ProcessRanks.shift, [0]

    def lost(self: ProcessRanks, tensor: torch.Tensor, by: int) -> Any:
        calls[0] += by < 0
        is_gradient = by < 0 and calls[0] % 2 == 0
        return shift(self, torch.zeros_like(tensor) if is_gradient else tensor, by)

    replace(ProcessRanks, "shift", lost)


@_fault
def _mask_of_another_rank_in_a_ring(replace: Replace) -> None:
    pair = ring._pair

    def of_another(rank: int, source: int, size: int, *, is_causal: bool) -> Any:
        return pair(source, rank, size, is_causal=is_causal)

    replace(ring, "_pair", of_another)


@_fault
def _entries_for_another_expert(replace: Replace) -> None:
    order = expert_exchange._order
    replace(expert_exchange, "_order", lambda *given: order(*given).roll(1))


@_fault
def _entries_that_come_back_in_another_order(replace: Replace) -> None:
    returned = expert_exchange._returned
    replace(expert_exchange, "_returned", lambda *given: returned(*given).roll(1, 0))


@_fault
def _gradients_of_entries_that_do_not_come_back(replace: Replace) -> None:
    def lost(ctx: Any, *given: torch.Tensor) -> Any:
        back = expert_exchange._moved(given[0], ctx.counts, not ctx.to, *ctx.places)
        return torch.zeros_like(back), None, None, None, None

    replace(expert_exchange._Move, "backward", staticmethod(lost))


@_fault
def _weights_of_before_the_update(replace: Replace) -> None:
    """Whole weights stay after their first gather, so that they miss every update."""
    replace(StateUnit, "release", lambda self: None)


@_fault
def _updates_that_are_not_gathered(replace: Replace) -> None:
    replace(StateUnit, "written", lambda self: None)


@_fault
def _parts_of_the_weights_in_another_order(replace: Replace) -> None:
    gather = ProcessShards.start_gather

    class Turned:
        def __init__(self, work: Any, whole: torch.Tensor, size: int) -> None:
            self._work, self._whole, self._size = work, whole, size

        def wait(self) -> None:
            self._work.wait()
            parts = self._whole.view(self._size, -1)
            parts.copy_(parts.flip(0).clone())

    replace(
        ProcessShards,
        "start_gather",
        lambda self, whole, own: Turned(gather(self, whole, own), whole, self.size),
    )


@_fault
def _state_s_gradients_that_are_not_summed(replace: Replace) -> None:
    scatter = ProcessShards.start_scatter

    def own_only(self: ProcessShards, own: torch.Tensor, whole: torch.Tensor) -> Any:
        zeros = torch.zeros_like(whole)
        part = own.numel() * self.rank()
        zeros[part : part + own.numel()] = whole[part : part + own.numel()]
        return scatter(self, own, zeros)

    replace(ProcessShards, "start_scatter", own_only)


@_fault
def _last_sum_in_place_of_all(replace: Replace) -> None:
    """Of the sums after each microbatch only the last one reaches the optimizer."""
    close = StateUnit.close

    def last(self: StateUnit) -> Any:
        for part in self.parts.values():
            part.grad = None
        return close(self)

    replace(StateUnit, "close", last)


@_fault
def _norm_of_gradients_that_counts_copies_twice(replace: Replace) -> None:
    replace(RankShards, "norm_share", lambda self, name: 1.0)
