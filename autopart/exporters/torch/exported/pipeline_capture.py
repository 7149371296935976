"""The capture of the model and its loss as one graph, from a microbatch to a scalar.

Written by autopart, for `pipeline_cut.py`.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import get_gradient_edge
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from pipeline_autograd import AsWritten, AutogradFunctions

Microbatch = tuple[Any, Any]


class ModelWithLoss(nn.Module):
    """The model and its loss as one module, from a microbatch to a scalar."""

    def __init__(self, model: nn.Module, loss_fn: Any) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, inputs: Any, target: Any) -> torch.Tensor:
        output = self.model(**inputs) if isinstance(inputs, dict) else self.model(*inputs)
        if self.loss_fn is not None:
            return self.loss_fn(output, target)
        if isinstance(output, torch.Tensor):
            return output
        own = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        return output[0] if own is None else own


def capture(
    model: nn.Module, loss_fn: Any, example: Microbatch
) -> tuple[fx.GraphModule, dict[int, str]]:
    """The model's loss as a flat graph, and names by tensor identity.

    Modules in eval mode stay so, unless all are; then all are put into train mode.
    The names cover parameters and buffers.
    """
    # Labels and ids may be one tensor. Copies keep them two inputs, as in later microbatches.
    distinct = pytree.tree_map(_own_copy, example)
    wrapped, functions = ModelWithLoss(model, loss_fn), AutogradFunctions()
    if not any(module.training for module in model.modules()):
        model.train()
    give_shapes(model, distinct[0])
    with functions.recorded():
        try:
            program = torch.export.export(wrapped, distinct, strict=False)
        except Exception as error:  # the exporter runs the model's code, which may raise any error
            told = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"the model cannot be captured: {told}") from error
    graph = program.module(check_guards=False)
    functions.replace_in(graph)
    named = [*wrapped.named_parameters(), *wrapped.named_buffers()]
    leaves = leaves_of(distinct)
    values = _fake_values(graph, leaves.values())
    reached = _reached_by_gradients(values[graph.graph.output_node().all_input_nodes[0]])
    for node, value in values.items():
        node.meta["fake"] = value
        node.meta["has_gradient"] = _is_reached(value, reached)
    for node, place in zip(graph.graph.find_nodes(op="placeholder"), leaves, strict=True):
        node.meta["place"] = place
    return graph, {id(value): name.removeprefix("model.") for name, value in named}


def give_shapes(model: nn.Module, inputs: Any) -> None:
    """Run the model once where it has lazy parameters, so that they get shapes and first values.

    The values follow from torch's seed alone, so that ranks with one seed get equal ones. Training
    modes stay as they were. Raises ValueError where the forward does not reach a lazy parameter.
    """
    if not lazy_parameters(model):
        return
    modes = {module: module.training for module in model.modules()}
    model.eval()  # norms must not count this forward as a step
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            torch.manual_seed(torch.initial_seed())
            model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode
    left = lazy_parameters(model)
    if left:
        raise ValueError(f"the lazy parameter '{left[0]}' has no shape after one forward")


def lazy_parameters(model: nn.Module) -> list[str]:
    """The names of parameters and buffers that have no shape yet."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, value in named if is_lazy(value)]


def _own_copy(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf


def leaves_of(microbatch: Microbatch) -> dict[str, Any]:
    """A microbatch's tensors and other leaves, by their path in it."""
    leaves, _ = pytree.tree_flatten_with_path(microbatch)
    return {pytree.keystr(path): leaf for path, leaf in leaves}


def _fake_values(graph: fx.GraphModule, leaves: Iterable[Any]) -> dict[fx.Node, Any]:
    """Each node's value as a tensor without data.

    It has the shape, the dtype and `requires_grad`.
    """
    values: dict[fx.Node, Any] = {}
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(value: Any) -> Any:
        return mode.from_tensor(value) if isinstance(value, torch.Tensor) else value

    class FakeRun(fx.Interpreter):
        def fetch_attr(self, target: str) -> Any:
            return fake(super().fetch_attr(target))

        def run_node(self, n: fx.Node) -> Any:
            values[n] = super().run_node(n)
            return values[n]

    for node in list(graph.graph.nodes):
        if "_assert_tensor_metadata" in str(node.target) or str(node.target) == "_guards_fn":
            graph.graph.erase_node(node)
    with mode, torch.enable_grad():
        FakeRun(graph).run(*map(fake, leaves), enable_io_processing=False)
    return values


def _reached_by_gradients(loss: torch.Tensor) -> set[tuple[Any, int]]:
    """The places in the autograd graph that the loss's gradient reaches.

    A place is a function and the number of its output. A value may require gradients and get none,
    for example where the loss needs only its sign.
    """
    if not loss.requires_grad:
        return set()
    edge = get_gradient_edge(loss)
    reached, waiting, seen = {(edge.node, edge.output_nr)}, [edge.node], {edge.node}
    while waiting:
        for function, output in waiting.pop().next_functions:
            if function is not None:
                reached.add((function, output))
                if function not in seen:
                    seen.add(function)
                    waiting.append(function)
    return reached


def _is_reached(value: Any, reached: set[tuple[Any, int]]) -> bool:
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        return False
    edge = get_gradient_edge(value)
    return (edge.node, edge.output_nr) in reached


def compute_on(graph: fx.GraphModule, device: torch.device) -> None:
    """Replace the model's device, which torch.export wrote into the graph, by `device`."""

    def moved(arguments: Any) -> Any:
        return pytree.tree_map(on_device, arguments)

    def on_device(argument: Any) -> Any:
        return device if isinstance(argument, torch.device) else argument

    for module in graph.modules():
        if isinstance(module, AsWritten):
            module.leaves = moved(module.leaves)
        if isinstance(module, fx.GraphModule):  # the graph, and its regions without gradients
            for node in module.graph.nodes:
                node.args, node.kwargs = moved(node.args), moved(node.kwargs)
            module.recompile()


def stack_of(node: fx.Node) -> list[tuple[str, str]]:
    """Enclosing module calls, outermost first, as path and call number."""
    stack = node.meta.get("nn_module_stack") or {}
    return [(path, key.partition("@")[2]) for key, (path, _) in stack.items()]


def calls_of(node: fx.Node) -> list[str]:
    """Enclosing calls to the model's modules, by layer name, such as `blocks.3` or `pool@1`."""
    inside = [(path, n) for path, n in stack_of(node) if path.startswith("model.")]
    return [path.removeprefix("model.") + (f"@{n}" if n else "") for path, n in inside]
