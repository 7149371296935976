"""Measure how easy the package is to read: rooms, imports, comments, sentences, lengths.

Usage: .venv/bin/python scripts/measure_house.py [CHECKOUT, default: this one] [--json]

Rooms are the files and folders on the top level of the package, with `scripts` as one more. An
arrow joins two rooms if a file in one imports a file in the other. A room's floor is one more than
the highest floor that it imports. Words and sentences are counted in docstrings, and in the pages
in docs/ outside code and tables.
"""

import argparse
import ast
import inspect
import io
import json
import re
import statistics
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import networkx as nx

COMMENTED = ("cost", "bounds", "solvers", "simulator", "activations")
"""Rooms with algorithms, whose comments are also counted separately."""


def figures(checkout: Path) -> dict[str, object]:
    """Every figure by its name."""
    sources = {
        path: path.read_text("utf-8") for path in sorted((checkout / "autopart").rglob("*.py"))
    }
    trees = {path: ast.parse(text) for path, text in sources.items()}
    functions = [
        (node, path)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    classes = Counter(
        node.name
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    docs = [text for tree in trees.values() for text in _docstrings(tree)]
    words = [word.lower() for text in docs for word in _words(text)]
    lengths = [len(text.splitlines()) for text in sources.values()]
    most, where = max((_parameters(node), f"{path.stem}.{node.name}") for node, path in functions)
    return {
        **_graph_figures(checkout, trees),
        "loose modules": sum(
            path.parent.name == "autopart" and path.stem not in ("__init__", "__main__")
            for path in trees
        ),
        "lines of the package": sum(lengths),
        "comment lines per 1,000 lines": _comment_rate(sources.values()),
        "comment lines per 1,000 lines of algorithms": {
            room: _comment_rate(
                text for path, text in sources.items() if f"autopart/{room}/" in path.as_posix()
            )
            for room in COMMENTED
        },
        "'what' per 1,000 docstring words": round(1000 * words.count("what") / len(words), 1),
        "'of' per 1,000 docstring words": round(1000 * words.count("of") / len(words), 1),
        "median words of a docstring sentence": statistics.median(_sentences(docs)),
        "median words of a sentence in docs/": _pages_median(checkout),
        "modules over 300 lines": sum(length > 300 for length in lengths),
        "functions over 60 lines": sum(_length(node) > 60 for node, _ in functions),
        "most parameters": f"{most} ({where})",
        "class names defined twice or more": sum(count > 1 for count in classes.values()),
    }


def _graph_figures(checkout: Path, trees: dict[Path, ast.Module]) -> dict[str, object]:
    """Rooms, floors, arrows between rooms, and import circles between folders at every depth."""
    modules = {_module_name(checkout, path) for path in trees}
    rooms: nx.DiGraph[str] = nx.DiGraph()
    folders: dict[str, nx.DiGraph[str]] = {}
    scripts = {path: ast.parse(path.read_text("utf-8")) for path in checkout.glob("scripts/*.py")}
    # Each import is an arrow between rooms, and between the two folders where its paths part.
    for path, tree in (trees | scripts).items():
        here = _module_name(checkout, path).split(".")
        room = here[0] if here[0] == "scripts" else here[1] if len(here) > 1 else "__init__"
        rooms.add_node(room)
        for name in _imports(tree, modules):
            there = name.split(".")
            other = there[1] if len(there) > 1 else "__init__"
            if other != room:
                rooms.add_edge(room, other)
            depth = next(
                (d for d, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), 0
            )
            if depth and room != "__init__":
                graph = folders.setdefault(".".join(here[:depth]), nx.DiGraph())
                graph.add_edge(here[depth], there[depth])
    rooms.remove_edges_from([edge for edge in rooms.edges if edge[1] == "__init__"])
    floors = nx.dag_longest_path_length(rooms) + 1 if nx.is_directed_acyclic_graph(rooms) else None
    circles = sum(
        len(part) > 1
        for graph in folders.values()
        for part in nx.strongly_connected_components(graph)
    )
    return {
        "rooms": rooms.number_of_nodes(),
        "floors": floors,
        "arrows between rooms": rooms.number_of_edges(),
        "circles of folders": circles,
    }


def _module_name(checkout: Path, path: Path) -> str:
    parts = path.relative_to(checkout).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(tree: ast.Module, modules: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "autopart":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else node.module or ""


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """Docstrings in modules, classes and functions, and under fields and constants."""
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield inspect.cleandoc(value.value)


def _comment_rate(texts: Iterable[str]) -> float:
    comments = lines = 0
    for text in texts:
        lines += len(text.splitlines())
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        found = [token.string for token in tokens if token.type == tokenize.COMMENT]
        comments += sum(
            not re.match(r"# (pyright|noqa|type|fmt|ruff)", comment) for comment in found
        )
    return round(1000 * comments / lines, 1) if lines else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z][A-Za-z'-]*", text)


def _sentences(texts: list[str]) -> list[int]:
    """The number of words in each sentence, without indented pictures and formulas."""
    found: list[int] = []
    for text in texts:
        prose = "\n".join("" if line.startswith("    ") else line for line in text.split("\n"))
        for paragraph in re.split(r"\n\s*\n", prose):
            parts = re.split(r"(?<=[.?!])\s+", " ".join(paragraph.split()))
            found += [len(_words(part)) for part in parts if _words(part)]
    return found


def _pages_median(checkout: Path) -> dict[str, float]:
    """The median for each page, without headings, tables and code."""
    medians: dict[str, float] = {}
    for page in sorted([checkout / "README.md", *(checkout / "docs").glob("*.md")]):
        text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        text = "\n".join(line for line in text.split("\n") if not line.startswith(("|", "#")))
        counts = _sentences([re.sub(r"^- ", "\n", text, flags=re.MULTILINE)])
        medians[page.name] = statistics.median(counts) if counts else 0
    return medians


def _length(node: ast.FunctionDef) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def _parameters(node: ast.FunctionDef) -> int:
    return len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs)


def main() -> None:
    """Print the figures for one checkout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", type=Path, nargs="?", default=Path(__file__).parent.parent)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = figures(asked.checkout.resolve())
    if asked.json:
        print(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        print(f"{name:44s} {value}")


if __name__ == "__main__":
    main()
