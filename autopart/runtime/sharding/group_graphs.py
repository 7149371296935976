"""The local graphs of a group of t x c ranks: the tensor pass, and the context pass over its result.

Place p of the group has tensor rank p mod t and context rank p div t.
"""

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from autopart.records.rank_group import Group, MaybeGroup, degrees_of
from autopart.runtime.capture.capture import Captured
from autopart.runtime.models.attributes import attach, is_persistent, lookup
from autopart.runtime.sharding.context.cut import ContextGraph, context_module, cut_context
from autopart.runtime.sharding.context.states import CONTEXT
from autopart.runtime.sharding.groups import LoneRank, TensorGroup, registered
from autopart.runtime.sharding.local_graph import GROUP
from autopart.runtime.sharding.local_model import local_model, local_module
from autopart.runtime.sharding.shard import ShardedGraph, shard_graph


@dataclass(frozen=True, slots=True)
class GroupGraphs:
    """A captured model divided over a group: by tensors, by positions, or both."""

    captured: Captured
    sharded: ShardedGraph | None = None
    """None with tensor degree 1."""
    context: ContextGraph | None = None
    """The context pass over a tensor rank's local graph; None with context degree 1."""

    @property
    def tensor_degree(self) -> int:
        """Ranks that share each layer's weights."""
        return 1 if self.sharded is None else self.sharded.degree

    @property
    def context_degree(self) -> int:
        """Ranks that share each sequence."""
        return 1 if self.context is None else self.context.degree

    @property
    def name(self) -> str:
        """The degrees, for a message."""
        words = [] if self.sharded is None else [f"tensor parallel degree {self.sharded.degree}"]
        words += [] if self.context is None else [f"context degree {self.context.degree}"]
        return ", ".join(words)

    def module(self, rank: int, state: Mapping[str, torch.Tensor]) -> fx.GraphModule:
        """Return the local graph of tensor rank `rank`, with parameters of its own.

        `state` has whole parameters and buffers by name. The captured model's stand in for others.
        """
        if self.sharded is None:
            module = _own_tensors(self.captured.module, state)
        else:
            module = local_module(self.sharded, rank, state)
        return module if self.context is None else context_module(self.context, module)

    def local(self, rank: int) -> Captured:
        """Return the local graph of tensor rank `rank` as a captured model, with parameters of its own.

        Parameters have the captured model's values; whole ones share its memory.
        """
        if self.context is not None:
            return replace(self.context.local, module=self.module(rank, {}))
        if self.sharded is not None:
            return local_model(self.sharded, rank)
        # Ranks that share state alone run the captured graph.
        return self.captured

    def alone(self) -> AbstractContextManager[None]:
        """Return a block in which the graphs run as place 0 without the others."""
        if self.tensor_degree * self.context_degree == 1:
            return nullcontext()
        return lone_place(Group(tensor=self.tensor_degree, context=self.context_degree))


def graphs_of(captured: Captured, group: Group) -> GroupGraphs:
    """Return the local graphs for a rank group's tensor and context degrees.

    Raises ModelError where the model cannot be divided so.
    """
    sharded, splits = None, group.sequence_parallel
    if group.tensor > 1:
        sharded = shard_graph(captured, group.tensor, sequence_parallel=splits)
    if group.context == 1:
        return GroupGraphs(captured, sharded)
    base = captured if sharded is None else local_model(sharded, 0)
    with registered(GROUP, LoneRank(group.tensor)):
        return GroupGraphs(captured, sharded, cut_context(base, group.context))


@contextmanager
def lone_place(group: MaybeGroup) -> Generator[None]:
    """In this block, local graphs run as place 0 without the others: collectives move nothing."""
    tensor, context = degrees_of(group)
    with registered(GROUP, LoneRank(tensor)), registered(CONTEXT, LoneRank(context)):
        yield


@contextmanager
def exchanging(tensor: int, context: int, ranks: TensorGroup) -> Generator[None]:
    """In this block, local graphs exchange through the ranks of a rank group, each kind through its part."""
    with ExitStack() as stack:
        if tensor > 1:
            stack.enter_context(registered(GROUP, ranks.part(1, tensor)))
        if context > 1:
            stack.enter_context(registered(CONTEXT, ranks.part(tensor, context)))
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
