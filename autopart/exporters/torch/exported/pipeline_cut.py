"""The cut of the model's graph into one module per stage.

Written by autopart, for `pipeline_stages.py`.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from pipeline_capture import Microbatch, calls_of, capture, compute_on, stack_of
from pipeline_plan import (
    NUM_STAGES,
    RECOMPUTED,
    SELECTIVE,
    SPLITS_BACKWARD,
    STAGE_OF_LAYER,
    STAGES,
)
from pipeline_recompute import recompute_layer
from pipeline_split_backward import Deferred, defer_weight_gradients


def cut_model(
    model: nn.Module, loss_fn: Any, example: Microbatch, device: torch.device
) -> list["StageModule"]:
    """All stages, in order.

    Their parameters are the model's own tensors, on the device where they were.
    """
    graph, names = capture(model, loss_fn, example)
    _assign_stages(graph)
    compute_on(graph, device)
    return [_cut_stage(graph, names, index) for index in range(NUM_STAGES)]


def _assign_stages(traced: fx.GraphModule) -> None:
    """Give each node a stage: its layer's stage, or its inputs' latest stage if that is later.

    A node with neither gets None. So does a node that depends on nothing but the microbatch, such
    as a mask or position ids. Such a node is cheap, and each stage that needs it computes it.

    Raises ValueError where the model lacks a planned layer.
    """
    # Inputs precede their users, so one pass suffices. A "bare" node needs no parameter and may run
    # on several stages.
    for node in traced.graph.nodes:
        inputs = node.all_input_nodes
        bare = not _happens_once(node) and all(n.meta["bare"] for n in inputs)
        if node.op == "get_attr":
            bare = not isinstance(_attribute(traced, node), nn.Parameter)
        stages = {n.meta["stage"] for n in inputs} - {None}
        if node.op.startswith("call") and node.target is not operator.getitem and not bare:
            stages |= {_asked_stage(node)} - {None}
        node.meta["bare"], node.meta["stage"] = bare, max(stages, default=None)
    traced.graph.output_node().meta["stage"] = NUM_STAGES - 1
    found = {name for node in traced.graph.nodes for name in calls_of(node)}
    missing = [layer for layer in STAGE_OF_LAYER if layer not in found | {"loss", "model"}]
    if missing:
        raise ValueError(f"the model has no layer '{missing[0]}'; it is not the one planned for")


def _asked_stage(node: fx.Node) -> int | None:
    """The stage with the node's layer; None for a node outside all layers."""
    stack = stack_of(node)
    if stack and not any(path.split(".")[0] == "model" for path, _ in stack):
        return NUM_STAGES - 1  # computed by the loss function
    # An operation that must happen once, but is in no layer, goes to the first stage.
    stages = [STAGE_OF_LAYER[name] for name in calls_of(node) if name in STAGE_OF_LAYER]
    return stages[0] if stages else 0 if _happens_once(node) else None


def _happens_once(node: fx.Node) -> bool:
    """True if the node draws random numbers or writes into a tensor."""
    tags, schema = getattr(node.target, "tags", ()), getattr(node.target, "_schema", None)
    writes = schema is not None and schema.is_mutable
    return writes or torch.Tag.nondeterministic_seeded in tags


class StageModule(nn.Module):
    """One stage for torch's PipelineStage.

    Positional arguments are tensors from the previous stage. Keyword arguments are tensors from the
    microbatch.
    """

    def __init__(
        self,
        cut: fx.GraphModule,
        received: Sequence[fx.Node],
        outputs: Sequence[fx.Node],
        leaves: dict[str, str],
        *,
        is_last: bool,
        waiting: "list[Callable[[], None]]",
    ) -> None:
        super().__init__()
        self.cut = cut
        self.waiting = waiting  # weight gradients that a backward has left to W
        self.leaves = leaves  # argument name, and path in the microbatch
        self.is_last = is_last
        self.received_examples = tuple(_example(node) for node in received)
        self.output_examples = tuple(_example(node) for node in outputs)
        if self.is_last:  # torch concatenates the losses, so a loss needs a dimension
            self.output_examples = tuple(e.reshape(1) for e in self.output_examples)

    def forward(self, *received: torch.Tensor, **leaves: torch.Tensor) -> Any:
        outputs = self.cut(*_port(received), *(leaves[name][0] for name in self.leaves))
        if self.is_last:
            return torch.stack(outputs)
        # A value without a gradient is detached. Torch would send zeros for it, and weight decay
        # would move the weights behind it.
        pairs = zip(outputs, self.output_examples, strict=True)
        return _port([made if like.requires_grad else made.detach() for made, like in pairs])

    def weight_gradients(self) -> Callable[[], None]:
        """W for the backward that has just run: a call that adds its weight gradients."""
        waiting = self.waiting.copy()
        self.waiting.clear()

        def run() -> None:
            for add in waiting:
                add()

        return run


def _cut_stage(traced: fx.GraphModule, names: dict[int, str], index: int) -> StageModule:
    """Stage `index` as a module with its own part of the graph."""
    # Step 1: find the values that the stage receives, sends on, and takes from the microbatch.
    nodes = list(traced.graph.nodes)
    is_last = index == NUM_STAGES - 1
    received, outputs = _crossing(nodes, index), _crossing(nodes, index + 1)
    if is_last:
        outputs = traced.graph.output_node().all_input_nodes
    wanted = _wanted(nodes, index)
    places = [node for node in nodes if node.op == "placeholder" and node in wanted]
    # Step 2: copy the stage's nodes; parameters and buffers get the model's own names.
    graph, root = fx.Graph(), dict[str, Any]()
    env = {node: graph.placeholder(node.name) for node in [*received, *places]}
    for node in nodes:
        if node not in wanted or node in env:
            continue
        env[node] = graph.node_copy(node, env.__getitem__)
        if node.op == "get_attr":
            value = _attribute(traced, node)
            name = names.get(id(value), str(node.target))
            env[node].target = name
            root[name] = value
        if node.op == "call_module":
            root[str(node.target)] = traced.get_submodule(str(node.target))
    graph.output(tuple(env[node] for node in outputs))
    # The prefix avoids a clash: the schedule's step has an argument `target` too.
    leaves = {f"batch_{node.name}": node.meta["place"] for node in places}
    # Step 3: rewrite the copy for a split backward and for recomputed layers.
    deferred = Deferred()
    if SPLITS_BACKWARD:
        defer_weight_gradients(graph, root, deferred)
    for layer in STAGES[index]:
        if layer in RECOMPUTED or layer in SELECTIVE:
            recompute_layer(graph, root, layer)
    module = fx.GraphModule(root, graph)
    return StageModule(module, received, outputs, leaves, is_last=is_last, waiting=deferred.waiting)


def _attribute(traced: fx.GraphModule, node: fx.Node) -> Any:
    return operator.attrgetter(str(node.target))(traced)


def _crossing(nodes: Sequence[fx.Node], index: int) -> list[fx.Node]:
    """Values that stage `index` receives.

    An earlier stage makes them. This stage needs them, or relays them to a later stage.
    """
    return [
        node
        for node in nodes
        if node.meta["stage"] is not None
        and node.meta["stage"] < index
        and any(user.meta["stage"] >= index for user in node.users)
    ]


def _wanted(nodes: Sequence[fx.Node], index: int) -> set[fx.Node]:
    """The stage's nodes, and the nodes without a stage that they need."""
    wanted = {node for node in nodes if node.meta["stage"] == index and node.op != "output"}
    for node in reversed(nodes):
        if node in wanted:
            wanted.update(n for n in node.all_input_nodes if n.meta["stage"] is None)
    return wanted


def _example(node: fx.Node) -> torch.Tensor:
    fake = node.meta["fake"]
    empty = torch.empty(fake.shape, dtype=fake.dtype, device="meta")
    return empty.requires_grad_(node.meta["has_gradient"])


class _Port(torch.autograd.Function):
    """Identity that makes tensors contiguous in forward and in backward.

    Messages must be contiguous. The results share memory with the arguments but are no views: a
    received leaf must not be written into, and torch detaches outputs in place. Missing gradients
    become zeros.
    """

    @staticmethod
    def forward(ctx: Any, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.data.contiguous() for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(gradient.contiguous() for gradient in gradients)


def _port(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    moving = [tensor for tensor in tensors if tensor.requires_grad]
    moved = iter(_Port.apply(*moving) if moving else ())
    return tuple(next(moved) if t.requires_grad else t.contiguous() for t in tensors)
