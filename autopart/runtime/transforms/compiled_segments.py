"""Torch's compiler on a stage's graph: each run of compilable operations becomes one call.

    port ▷ [linear gelu linear] ▷ dropout ▷ [add layer_norm] ▷ port        [ ] is one compiled segment

Between segments, operations run as without the compiler: ports, random operations, calls of modules
that are not captured, split operations, and layers that are recomputed or offloaded. So each draws
the same numbers as without it. Segments inside recomputed layers were tried: torch 2.13 refuses to
run them again in backward.
"""

# pyright: reportPrivateUsage=false

import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._functorch import config as functorch_config
from torch.utils._python_dispatch import _disable_current_modes

from autopart.errors import UsageError
from autopart.runtime.capture.stage_modules import port
from autopart.runtime.transforms.seeded_draws import draws

Env = dict[fx.Node, fx.Node]
"""Maps nodes in the old graph to their copies in the new one."""


class CompiledSegment(nn.Module):
    """A run of operations under torch's compiler. Parameters and buffers are inputs."""

    def __init__(self, part: fx.GraphModule) -> None:
        super().__init__()
        self._compiled: Callable[..., Any] = torch.compile(part, fullgraph=True, dynamic=False)
        self._is_compiled = False

    def forward(self, *inputs: Any) -> Any:
        # The compiler does nothing under modes of the caller, such as a check's. The segment draws
        # no random numbers, so the modes would change nothing.
        with (
            _disable_current_modes(),
            torch._C.DisableTorchFunction(),
        ):
            if self._is_compiled:
                return self._compiled(*inputs)
            self._is_compiled = True
            # The compiler's own warnings are not the user's. The backward is compiled here, too.
            with (
                warnings.catch_warnings(),
                functorch_config.patch(force_non_lazy_backward_lowering=True),
            ):
                warnings.simplefilter("ignore")
                return self._compiled(*inputs)


def check_compiler(device: torch.device) -> None:
    """Raise UsageError unless torch can compile for the device: C++ on a CPU, Triton on a GPU."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            raise UsageError(
                "--compile needs a C++ compiler, and none is here; install g++ or set CXX, or leave "
                "--compile out"
            ) from None
        return
    from torch.utils._triton import has_triton

    if not has_triton():
        raise UsageError(
            f"--compile needs Triton for device {device.type}, which is not here; install triton, or "
            "leave --compile out"
        )


def compile_segments(module: fx.GraphModule) -> int:
    """Put each run of compilable operations into a compiled segment, in place; return their number.

    Compilation itself happens in the first call.
    """
    number, graph, env, run = 0, fx.Graph(), Env(), list[fx.Node]()
    for node in _ports_first(module):
        if _can_compile(module, node):
            run.append(node)
        elif node.op in ("placeholder", "get_attr"):
            env[node] = graph.node_copy(node, env.__getitem__)
        else:
            number += _close(module, graph, env, run)
            env[node] = graph.node_copy(node, env.__getitem__)
    module.graph = graph
    return number


def _ports_first(module: fx.GraphModule) -> Sequence[fx.Node]:
    """The nodes in order, except that attributes and ports of received tensors come first."""
    nodes = list(module.graph.nodes)
    early = [n for n in nodes if n.op in ("placeholder", "get_attr")]
    early += [n for n in nodes if n.target is port and n.all_input_nodes[0].op == "placeholder"]
    first = set(early)
    return [*early, *(node for node in nodes if node not in first)]


def _can_compile(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is an operation that draws nothing and takes tensors and plain values only."""
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return _can_compile(module, node.all_input_nodes[0])
    return isinstance(node.target, torch._ops.OpOverload) and not draws(
        node.target, node.args, node.kwargs
    )


def _close(module: fx.GraphModule, graph: fx.Graph, env: Env, run: list[fx.Node]) -> int:
    """Add a call of the segment with the nodes in `run`, which is empty afterwards."""
    if not run:
        return 0
    inside, part, made = set(run), fx.Graph(), Env()
    taken = dict.fromkeys(n for node in run for n in node.all_input_nodes if n not in inside)
    given_out = [n for n in run if any(user not in inside for user in n.users)]
    if not given_out:  # writes into buffers only
        for node in run:
            env[node] = graph.node_copy(node, env.__getitem__)
        run.clear()
        return 0
    # Step 1: the run as a graph of its own, whose inputs are all that it takes.
    for place, node in enumerate(taken):
        made[node] = part.placeholder(f"input_{place}")
    for node in run:
        made[node] = part.node_copy(node, made.__getitem__)
    part.output(tuple(made[node] for node in given_out))
    # Step 2: one call in its place, and its results one by one.
    name = f"compiled_{sum(1 for child, _ in module.named_children() if child.startswith('compiled_'))}"
    module.add_module(name, CompiledSegment(fx.GraphModule(nn.Module(), part)))
    call = graph.call_module(name, tuple(env[node] for node in taken))
    for place, node in enumerate(given_out):
        env[node] = graph.call_function(operator.getitem, (call, place))
    run.clear()
    return 1
