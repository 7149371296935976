"""The local graphs of a group of ranks: the tensor pass, the expert pass over its result, and the context pass over that.

Place p of the group has tensor rank p mod t, context rank (p div t) mod c, and expert rank p div (t c).
"""

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace

import msgspec
import torch
from torch import fx, nn

from autopart.records.rank_group import Group, MaybeGroup, degrees_of, has_ring
from autopart.runtime.capture.capture import Captured
from autopart.runtime.models.attributes import attach, is_persistent, lookup
from autopart.runtime.sharding.context.cut import (
    ContextGraph,
    context_module,
    cut_context,
    cut_samples,
)
from autopart.runtime.sharding.context.states import CONTEXT, EXPERT
from autopart.runtime.sharding.groups import LoneRank, TensorGroup, registered
from autopart.runtime.sharding.local_graph import GROUP
from autopart.runtime.sharding.local_model import local_model, local_module
from autopart.runtime.sharding.shard import ShardedGraph, shard_graph


@dataclass(frozen=True, slots=True)
class GroupGraphs:
    """A captured model divided over a group: by tensors, by experts, and by positions."""

    captured: Captured
    sharded: ShardedGraph | None = None
    """None with tensor degree 1."""
    experts: ContextGraph | None = None
    """The expert pass over a tensor rank's local graph; None with expert degree 1."""
    context: ContextGraph | None = None
    """The context pass over the local graph of an expert and tensor rank; None with context degree 1."""

    @property
    def tensor_degree(self) -> int:
        """Ranks that share each layer's weights."""
        return 1 if self.sharded is None else self.sharded.degree

    @property
    def context_degree(self) -> int:
        """Ranks that share each sequence."""
        return 1 if self.context is None else self.context.degree

    @property
    def expert_degree(self) -> int:
        """Ranks that share each layer's experts."""
        return 1 if self.experts is None else self.experts.degree

    @property
    def group(self) -> Group:
        """The degrees as a rank group, of at least 2 GPUs."""
        return Group(
            tensor=self.tensor_degree,
            context=self.context_degree,
            exchange="ring" if self.context is not None and self.context.ring else msgspec.UNSET,
            expert=self.expert_degree,
        )

    @property
    def _passes(self) -> list[ContextGraph]:
        """The passes over a tensor rank's local graph, in their order."""
        return [one for one in (self.experts, self.context) if one is not None]

    @property
    def name(self) -> str:
        """The degrees, for a message."""
        words = [] if self.sharded is None else [f"tensor parallel degree {self.sharded.degree}"]
        words += [f"{one.group} degree {one.degree}" for one in self._passes]
        return ", ".join(words)

    def module(self, rank: int, state: Mapping[str, torch.Tensor]) -> fx.GraphModule:
        """Return the local graph of place `rank`, with parameters of its own.

        `state` has whole parameters and buffers by name. The captured model's stand in for others.
        """
        if self.sharded is None:
            module = _own_tensors(self.captured.module, state)
        else:
            module = local_module(self.sharded, rank % self.sharded.degree, state)
        for one in self._passes:
            module = context_module(one, module, self._rank_in(one, rank))
        return module

    def _rank_in(self, one: ContextGraph, place: int) -> int:
        """The rank of a place among those of a pass."""
        rank = place // self.tensor_degree
        return rank % one.degree if one is self.context else rank // self.context_degree

    def local(self, rank: int) -> Captured:
        """Return the local graph of place `rank` as a captured model, with parameters of its own.

        Parameters have the captured model's values; whole ones share its memory.
        """
        if passes := self._passes:
            return replace(passes[-1].local, module=self.module(rank, {}))
        if self.sharded is not None:
            return local_model(self.sharded, rank)
        # Ranks that share state alone run the captured graph.
        return self.captured

    def alone(self, load: float = 1.0) -> AbstractContextManager[None]:
        """Return a block in which the graphs run as place 0 without the others; `load` as for `lone_place`."""
        if not self._passes and self.sharded is None:
            return nullcontext()
        return lone_place(self.group, load)


def graphs_of(captured: Captured, group: Group) -> GroupGraphs:
    """Return the local graphs for a rank group's tensor, context and expert degrees.

    Raises ModelError where the model cannot be divided so.
    """
    sharded, splits = None, group.sequence_parallel
    if group.tensor > 1:
        sharded = shard_graph(captured, group.tensor, sequence_parallel=splits)
    if group.context * group.expert == 1:
        return GroupGraphs(captured, sharded)
    base = captured if sharded is None else local_model(sharded, 0)
    experts = context = None
    with registered(GROUP, LoneRank(group.tensor)), registered(EXPERT, LoneRank(group.expert)):
        if group.expert > 1:
            experts = cut_samples(base, group.expert)
            base = experts.local
        if group.context > 1:
            context = cut_context(base, group.context, ring=has_ring(group))
    return GroupGraphs(captured, sharded, experts, context)


@contextmanager
def lone_place(group: MaybeGroup, load: float = 1.0) -> Generator[None]:
    """In this block, local graphs run as place 0 without the others: collectives move nothing.

    Its experts get `load` times as many entries as it sends.
    """
    with ExitStack() as stack:
        for name, degree in zip((GROUP, CONTEXT, EXPERT), degrees_of(group), strict=True):
            stack.enter_context(registered(name, LoneRank(degree, load)))
        yield


@contextmanager
def exchanging(degrees: tuple[int, int, int], ranks: TensorGroup) -> Generator[None]:
    """In this block, local graphs exchange through the ranks of a rank group, each kind through its part.

    `degrees` are the tensor, context and expert degree.
    """
    stride = 1
    with ExitStack() as stack:
        for name, degree in zip((GROUP, CONTEXT, EXPERT), degrees, strict=True):
            if degree > 1:
                stack.enter_context(registered(name, ranks.part(stride, degree)))
            stride *= degree
        yield


def _own_tensors(module: fx.GraphModule, state: Mapping[str, torch.Tensor]) -> fx.GraphModule:
    """Return the same graph with parameters and buffers of its own, named as in `module`."""
    new = nn.Module()
    for name in {str(node.target): None for node in module.graph.find_nodes(op="get_attr")}:
        own = lookup(module, name)
        if not isinstance(own, torch.Tensor):
            attach(new, name, own)
            continue
        whole = state.get(name, own).detach()
        if isinstance(own, nn.Parameter):
            attach(new, name, nn.Parameter(whole, requires_grad=own.requires_grad))
        else:
            attach(new, name, whole.clone(), persistent=is_persistent(module, name))
    return fx.GraphModule(new, module.graph)
