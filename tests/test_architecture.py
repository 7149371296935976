"""The rules of the house, read from the source: who may import whom, and where words may go."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import networkx as nx
import pytest

import autopart

PACKAGE = Path(autopart.__file__).parent

ROOMS = (
    "errors",
    "units",
    "files",
    "training",
    "gpus",
    "graph",
    "profile",
    "sizes",
    "cluster",
    "schedule",
    "schedules",
    "problem",
    "layouts",
    "plan",
    "simulator",
    "run_result",
    "stage_load",
    "ways",
    "frontier",
    "cost",
    "probe_result",
    "stage_points",
    "cuts",
    "treated",
    "pricing",
    "asynchronous_prices",
    "bounds",
    "order_bounds",
    "layout_bounds",
    "steady",
    "replica_bounds",
    "states",
    "loads",
    "importers",
    "solvers",
    "foreign",
    "search",
    "steady_search",
    "replica_search",
    "size_search",
    "proof",
    "assumptions",
    "certificate",
    "way_demands",
    "shortage",
    "planner",
    "memory_sweep",
    "step_causes",
    "fidelity",
    "exporters",
    "proofs",
    "zoo",
    "runtime",
    "report",
    "cli",
    "__main__",
)
"""From the ground up: a room imports only rooms that stand before it."""

TORCH_ROOMS = ("runtime", "zoo")
DRAWERS = {"utils", "util", "common", "core", "helpers", "misc", "base"}
LONGEST_FILE = 450
LONGEST_FUNCTION = 60


class Module(NamedTuple):
    """One source file."""

    name: str
    """`autopart.solvers.chain`."""
    path: Path
    tree: ast.Module

    @property
    def room(self) -> str:
        """`solvers`; empty for `autopart` itself."""
        return self.name.partition(".")[2].partition(".")[0]


def _modules() -> list[Module]:
    found: list[Module] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, path, ast.parse(path.read_text(encoding="utf-8"))))
    return found


MODULES = _modules()
NAMES = {module.name for module in MODULES}


def _imports(module: Module) -> Iterator[str]:
    """Every module that is imported anywhere in the file, in functions and for types too."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.path}: imports are absolute"
            assert node.module is not None
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inner if name in NAMES]
            yield from modules
            if len(modules) < len(inner):
                yield node.module


def _ours(module: Module) -> set[str]:
    return {name for name in _imports(module) if name.partition(".")[0] == "autopart"}


def test_a_room_imports_only_rooms_below_it() -> None:
    for module in MODULES:
        if not module.room:
            continue
        for name in _ours(module):
            room = name.partition(".")[2].partition(".")[0]
            if room in ("", module.room):
                continue
            assert ROOMS.index(room) < ROOMS.index(module.room), f"{module.name} imports {name}"


def test_every_room_has_its_place_in_the_house() -> None:
    assert {module.room for module in MODULES} - {""} <= set(ROOMS)


def test_folders_of_solvers_know_nothing_of_each_other() -> None:
    """Each answers to one kind of objective; what two of them need stands in a room below."""
    for module in MODULES:
        home = module.name.split(".")[1:]
        if home[:1] != ["solvers"] or len(home) < 3:
            continue
        for name in _ours(module):
            other = name.split(".")[1:]
            assert other[:1] != ["solvers"] or other[1] == home[1], f"{module.name} imports {name}"


def test_no_import_goes_in_a_circle() -> None:
    """Imports inside functions count: a circle hidden in a function body is one all the same."""
    imports: nx.DiGraph[str] = nx.DiGraph()
    for module in MODULES:
        if module.room:  # the package itself looks its public names up when they are used
            imports.add_edges_from((module.name, name) for name in _ours(module) - {"autopart"})
    assert list(nx.simple_cycles(imports)) == []


def test_torch_stays_in_its_rooms() -> None:
    for module in MODULES:
        top = {name.partition(".")[0] for name in _imports(module)}
        if module.room not in TORCH_ROOMS:
            assert not top & {"torch", "transformers"}, module.name


def test_pulp_stays_in_the_integer_program() -> None:
    for module in MODULES:
        top = {name.partition(".")[0] for name in _imports(module)}
        if not module.name.startswith("autopart.solvers.ilp."):
            assert not top & {"pulp", "highspy"}, module.name


def test_words_are_printed_by_the_command_line_only() -> None:
    for module in MODULES:
        called = [node.func for node in ast.walk(module.tree) if isinstance(node, ast.Call)]
        assert not [f for f in called if isinstance(f, ast.Name) and f.id == "print"]
        if module.room not in ("cli", "__main__"):
            assert not set(_imports(module)) & {"typer", "rich.progress", "rich.live"}
            names = {node.id for node in ast.walk(module.tree) if isinstance(node, ast.Name)}
            assert "Console" not in names, module.path
            streams = [n for n in ast.walk(module.tree) if isinstance(n, ast.Attribute)]
            if module.room != "runtime":  # ranks talk to each other through their streams
                assert not [n for n in streams if n.attr in ("stdout", "stderr")]


def test_every_module_and_public_name_says_what_it_is() -> None:
    for module in MODULES:
        assert ast.get_docstring(module.tree), module.path
        for node in module.tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{module.path}: {node.name}"


def test_files_and_functions_stay_short() -> None:
    for module in MODULES:
        assert len(module.path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef) and module.room != "cli":
                length = (node.end_lineno or 0) - node.body[0].lineno + 1
                assert length <= LONGEST_FUNCTION, f"{module.path}: {node.name} has {length} lines"


def test_what_is_caught_is_named() -> None:
    """`except Exception` stands only at the boundary to a user's code, with its reason beside it."""
    for module in MODULES:
        lines = module.path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            assert node.type is not None, f"{module.path}:{node.lineno}: a bare except"
            if isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException"):
                raises = any(isinstance(n, ast.Raise) and n.exc is None for n in ast.walk(node))
                around = "\n".join(lines[max(0, node.lineno - 3) : node.lineno + 2])
                assert raises or (module.room == "runtime" and "#" in around), (
                    f"{module.path}:{node.lineno}"
                )


def test_there_is_no_drawer_and_no_global_state() -> None:
    for module in MODULES:
        assert not DRAWERS & set(module.name.split("."))
        assert not [n for n in ast.walk(module.tree) if isinstance(n, ast.Global)]


def test_a_command_has_a_file_with_an_example_and_a_short_body() -> None:
    commands = [module for module in MODULES if module.name.endswith("_command")]
    assert commands
    for module in commands:
        body = next(
            node
            for node in module.tree.body
            if isinstance(node, ast.FunctionDef) and node.name == "command"
        ).body
        statements = [n for part in body for n in ast.walk(part) if isinstance(n, ast.stmt)]
        assert len(statements) <= 21, f"{module.name}: {len(statements)} statements"


def test_importing_autopart_imports_neither_torch_nor_a_solver() -> None:
    program = (
        "import sys, autopart\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "sys.exit(bool(names & {'torch', 'numpy', 'pulp', 'networkx', 'typer', 'rich'}))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


def test_every_public_name_is_there_and_leads_to_its_home() -> None:
    from autopart import _HOME_OF  # the table that __getattr__ reads

    assert set(autopart.__all__) == {*_HOME_OF, "__version__"}
    typed = {
        alias.asname or alias.name
        for node in ast.walk(next(m.tree for m in MODULES if m.name == "autopart"))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("autopart.")
        for alias in node.names
    }
    assert typed == set(_HOME_OF)
    for name in autopart.__all__:
        assert getattr(autopart, name) is not None
    assert set(autopart.__all__) <= set(dir(autopart))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'partition_everything'"):
        autopart.partition_everything  # noqa: B018
