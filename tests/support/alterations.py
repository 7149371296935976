"""Every single change to a tree of plain values: each leaf, each list and each object in turn."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

Path = tuple[str | int, ...]

WORDS: dict[str, tuple[str, ...]] = {
    "method": ("measured", "analytic", "imported"),
    "dtype": ("float32", "bfloat16"),
    "solver": ("dp", "ilp", "auto", "uniform"),
    "schedule": ("gpipe", "1f1b", "zb-h1", "zbv", "custom", "chimera"),
    "schedules": ("gpipe", "1f1b", "zb-h1", "zbv", "custom", "chimera"),
    "objective": ("step", "bottleneck"),
    "optimizer": ("adamw", "sgd", "8"),
    "precision": ("float32", "bfloat16", "bfloat16-mixed"),
    "gradient_dtype": ("float32", "bfloat16"),
    "recompute": ("never", "auto", "selective", "always"),
    "offload": ("never", "auto", "always"),
    "offload_optimizer": ("never", "auto", "always"),
    "layer": ("l0", "l1", "l2", "l3", "l4"),
    "layers": ("l0", "l1", "l2", "l3", "l4"),
}
"""Words that are valid under a key, in place of the one that is there."""

LARGE = 1 << 40


class Alteration(NamedTuple):
    """One change at one place in a tree."""

    path: Path
    how: str
    tree: Any
    """The whole tree with the change."""

    @property
    def place(self) -> str:
        """The path with a star for each position in a list."""
        return ".".join("*" if isinstance(key, int) else key for key in self.path)


def alterations(tree: Any) -> Iterator[Alteration]:
    """All changes to a tree, one at a time."""
    for path, node in _nodes(tree, ()):
        for how, other in _others(path, node):
            if type(other) is not type(node) or other != node:
                yield Alteration(path, how, _with(tree, path, other))
        if isinstance(node, dict):
            for key in node:
                rest = {k: node[k] for k in node if k != key}
                yield Alteration((*path, key), "dropped", _with(tree, path, rest))


def _nodes(node: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if path:
        yield path, node
    if isinstance(node, dict):
        for key in node:
            yield from _nodes(node[key], (*path, key))
    elif isinstance(node, list):
        for at, item in enumerate(node):
            yield from _nodes(item, (*path, at))


def _others(path: Path, node: Any) -> Iterable[tuple[str, Any]]:
    """The changes to one node, each with a word for it."""
    match node:
        case bool():
            return [("flipped", not node), ("null", None), ("one", int(not node))]
        case int() | float():
            return [
                ("plus 1", node + 1),
                ("minus 1", node - 1),
                ("twice", 2 * node),
                ("slightly more", node * (1 + 1e-6)),
                ("zero", type(node)(0)),
                ("negative", -node or -1),
                ("null", None),
                ("large", type(node)(LARGE)),
                ("beyond any float", 10**400),
            ]
        case str():
            return _other_words(path, node)
        case None:
            return [("zero", 0), ("one", 1), ("a word", "banana"), ("a list", [])]
        case list():
            return _other_lists(node)
        case dict():
            return [("one key more", node | {"banana": 1}), ("null", None)]
        case _:
            raise AssertionError(type(node))


def _other_words(path: Path, word: str) -> Iterator[tuple[str, str | None]]:
    key = next(key for key in reversed(path) if isinstance(key, str))
    yield from [("another word", "banana"), ("empty", ""), ("null", None), ("longer", word + "x")]
    yield from ((f"the word {other}", other) for other in WORDS.get(key, ()))
    parts = word.split(" ")
    if len(parts) > 1:
        yield "a part dropped", " ".join(parts[1:])
        yield "a part doubled", " ".join([parts[0], *parts])
        yield "parts swapped", " ".join([*parts[1::-1], *parts[2:]])
        yield "last parts swapped", " ".join([*parts[:-2], parts[-1], parts[-2]])
        yield "more spaces", "  ".join(parts)


def _other_lists(items: list[Any]) -> Iterator[tuple[str, list[Any] | None]]:
    yield from [("null", None), ("emptied", [])]
    if items:
        yield from [("first dropped", items[1:]), ("last dropped", items[:-1])]
        yield from [("first doubled", [items[0], *items]), ("last doubled", [*items, items[-1]])]
    if len(items) > 1:
        yield from [("swapped", [*items[1::-1], *items[2:]]), ("backwards", items[::-1])]


def _with(tree: Any, path: Path, value: Any) -> Any:
    """The tree with another value at one place; nothing on the way there is shared."""
    if not path:
        return value
    found = copy.copy(tree)
    found[path[0]] = _with(tree[path[0]], path[1:], value)
    return found
