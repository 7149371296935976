"""The search for layers: some modules are layers, others are opened to find layers inside."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import fx, nn

from autopart.runtime.capture.dataflow import Dataflow, dependencies
from autopart.runtime.models.attributes import WRAPPED, user_name

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_DOMINANT = 0.5
"""Share of all parameters above which a module is opened."""
_COMPUTED = "parametrizations"
"""Name under which torch keeps the modules that compute a module's weight. They are no layers."""
_SMALL = 4
"""Largest number of modules with parameters in a plain sequence that counts as one block.

Such a sequence (convolution, norm, activation, …) is a list element.
"""


class Call(NamedTuple):
    """One module call."""

    path: str
    name: str
    """The path, with a suffix for repeated calls: ``@1`` for the second one, and so on."""


def call_stack(node: fx.Node) -> tuple[Call, ...] | None:
    """Return the calls of the user's modules in which the node ran, outermost first.

    The root is left out. None where the node ran outside the user's model, in the loss.
    """
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ()
    calls = [(key, entry[0]) for key, entry in stack.items()]
    root = WRAPPED.removesuffix(".")
    if not any(path == root or path.startswith(WRAPPED) for _, path in calls):
        return None
    return tuple(
        Call(user_name(path), user_name(path) + _call_suffix(key))
        for key, path in calls
        if path.startswith(WRAPPED)
    )


def opened_modules(
    nodes: Sequence[fx.Node],
    index: Mapping[fx.Node, int],
    flow: Dataflow,
    model: nn.Module,
    granularity: str,
) -> frozenset[str]:
    """Return the paths of all modules that are no layers themselves.

    With granularity "module", all modules with children are opened. With "block", these are opened:

    - Lists (``Sequential``, ``ModuleList``, ``ModuleDict``). Short sequences of leaf modules stay
      closed if they are list elements.
    - Modules with a list of layers below them: its composite modules run one after another. Experts
      that run beside each other are no layers.
    - A module that has most of the model's parameters and stands outside lists. Its composite
      children must run one after another.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if granularity == "module":
        return frozenset(path for path, module in modules.items() if _is_composite(module))
    runs = _Runs(nodes, index, flow, modules)
    # Step 1: lists of layers, which open every module above them.
    layered = [path for path in runs.lists() if runs.is_list_of_layers(path)]
    # Step 2: all other lists, except small blocks.
    opened = {
        path
        for path, module in modules.items()
        if isinstance(module, _LISTS) and not _is_small_block(path, modules)
    }
    # Step 3: the modules above lists of layers and above dominant chains.
    for path in [*layered, *runs.dominant_chains(model)]:
        opened.update(_and_above(path))
    return frozenset(opened)


def _is_small_block(path: str, modules: Mapping[str, nn.Module]) -> bool:
    children = list(modules[path].children())
    with_parameters = [c for c in children if next(c.parameters(), None) is not None]
    return (
        bool(path)
        and isinstance(modules[path.rpartition(".")[0]], _LISTS)
        and isinstance(modules[path], nn.Sequential)
        and not any(map(_is_composite, children))
        and len(with_parameters) <= _SMALL
    )


class _Runs:
    """Times at which each module's parts ran, and their dependencies."""

    def __init__(
        self,
        nodes: Sequence[fx.Node],
        index: Mapping[fx.Node, int],
        flow: Dataflow,
        modules: Mapping[str, nn.Module],
    ) -> None:
        self._index = index
        self._flow = flow
        self._modules = modules
        self._parts: dict[str, dict[str, list[fx.Node]]] = {}
        self._path_of: dict[str, str] = {}
        for node in nodes:
            for call in _calls_and_lists(call_stack(node) or ()):
                parent = call.path.rpartition(".")[0]
                self._parts.setdefault(parent, {}).setdefault(call.name, []).append(node)
                self._path_of[call.name] = call.path

    def lists(self) -> list[str]:
        return [
            path
            for path in self._parts
            if isinstance(self._modules[path], _LISTS) and _COMPUTED not in path.split(".")
        ]

    def is_list_of_layers(self, path: str) -> bool:
        """Tell whether the list's composite elements run one after another."""
        composite = self._composite_parts(path)
        alone = len(self._parts[path]) == 1
        return len(composite) >= (1 if alone else 2) and self._is_chain(composite)

    def dominant_chains(self, model: nn.Module) -> list[str]:
        """Return large modules outside lists whose composite children run one after another."""
        total = sum(p.numel() for p in model.parameters())
        found: list[str] = []
        for path in self._parts:
            parent = self._modules[path.rpartition(".")[0]] if path else None
            if path and not isinstance(parent, _LISTS):
                own = sum(p.numel() for p in self._modules[path].parameters())
                chain = self._composite_parts(path)
                several = len({self._path_of[name] for name in chain}) > 1
                if own > _DOMINANT * total and several and self._is_chain(chain):
                    found.append(path)
        return found

    def _composite_parts(self, path: str) -> dict[str, list[fx.Node]]:
        return {
            name: nodes
            for name, nodes in self._parts[path].items()
            if _is_composite(self._modules[self._path_of[name]])
        }

    def _is_chain(self, parts: Mapping[str, list[fx.Node]]) -> bool:
        ordered = sorted(parts.values(), key=lambda nodes: self._index[nodes[0]])
        return all(self._depends(later, earlier) for earlier, later in pairwise(ordered))

    def _depends(self, later: Iterable[fx.Node], earlier: Sequence[fx.Node]) -> bool:
        # Search backward from the later part. Nodes before the earlier part cannot lead to it.
        goal, start = set(earlier), self._index[earlier[0]]
        waiting, seen = list(later), set(later)
        while waiting:
            node = waiting.pop()
            if node in goal:
                return True
            for before in dependencies(node, self._flow):
                if before not in seen and self._index[before] >= start:
                    seen.add(before)
                    waiting.append(before)
        return False


def _calls_and_lists(stack: tuple[Call, ...]) -> list[Call]:
    """Return the calls, and for each call the lists above it, which are never called themselves."""
    named = {call.path: call for call in stack}
    for call in stack:
        for path in _and_above(call.path):
            if path:
                named.setdefault(path, Call(path, path))
    return list(named.values())


def _and_above(path: str) -> list[str]:
    """Return the path and all paths above it, up to the root's empty path."""
    steps = path.split(".") if path else []
    return [".".join(steps[:end]) for end in range(len(steps), -1, -1)]


def _is_composite(module: nn.Module) -> bool:
    return any(name != _COMPUTED for name, _ in module.named_children())


def _call_suffix(key: str) -> str:
    _, at, count = key.rpartition("@")
    return f"@{count}" if at and count.isdigit() else ""
