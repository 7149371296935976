"""The rules of the house, read from the source: who may import whom, and where words may go."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import networkx as nx
import pytest

import autopart

PACKAGE = Path(autopart.__file__).parent

GROUND = {"errors", "downsets", "units", "text", "stopping"}
"""Every room may import these."""

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "downsets": set(),
    "units": {"errors"},
    "text": set(),
    "stopping": set(),
    "schedules": set(),
    "zoo": set(),
    "records": {"schedules"},
    "cost": {"records", "schedules"},
    "simulator": {"records", "schedules"},
    "exporters": {"records", "schedules"},
    "importers": {"exporters", "records"},
    "activations": {"cost", "records", "schedules"},
    "fidelity": {"simulator", "records", "schedules"},
    "pricing": {"activations", "cost", "simulator", "records", "schedules"},
    "bounds": {"activations", "cost", "simulator", "records", "schedules"},
    "stage_degrees": {
        "bounds", "pricing", "activations", "cost", "simulator", "records", "schedules",
    },
    "solvers": {
        "stage_degrees", "bounds", "pricing", "activations", "cost", "simulator", "records", "schedules",
    },
    "certificate": {
        "stage_degrees", "bounds", "pricing", "activations", "cost", "simulator", "records", "schedules",
    },
    "search": {
        "solvers", "certificate", "stage_degrees", "bounds", "pricing", "activations", "cost",
        "simulator", "records", "schedules",
    },
    "peers": {"solvers", "records"},
    "calibration": {"runtime", "search", "records"},
    "scaling": {"runtime", "records"},
    "runtime": {"records", "schedules", "cost", "fidelity", "zoo"},
    "trainers": {"runtime", "records", "schedules"},
    "report": {
        "records", "schedules", "cost", "simulator", "fidelity", "exporters", "search", "peers",
    },
}  # fmt: skip
"""The rooms that each room may import, besides `GROUND`. The command line imports all of them."""

FACE = {"cli", "__main__", ""}
"""The command line and the public names. Nobody imports them."""

PEERS_READERS = {"peers", "report", "cli", ""}
RUNTIME_ORDER = (
    "models", "measuring", "capture", "transforms", "sharding", "update", "engine", "checking",
    "job",
)  # fmt: skip
"""The folders of `runtime` that run a plan. Each imports only folders to its left."""

TORCH_ROOMS = ("runtime", "trainers", "zoo")
EXPORTED_FOLDER = "autopart.exporters.torch.exported"
"""Its sources are what `export --to torch` writes. They need torch and never autopart."""
DRAWERS = {"utils", "util", "common", "core", "helpers", "misc", "base"}
LONGEST_FILE = 450
LONGEST_FUNCTION = 60
MOST_PARAMETERS = 8


class Module(NamedTuple):
    """One source file."""

    name: str
    """`autopart.solvers.cuts_dp`."""
    path: Path

    @property
    def tree(self) -> ast.Module:
        """What the file says; parsed once, when a test first asks."""
        return _parsed(self.path)

    @property
    def room(self) -> str:
        """`solvers`; empty for `autopart` itself."""
        return self.name.partition(".")[2].partition(".")[0]


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _modules() -> list[Module]:
    found: list[Module] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, path))
    return found


MODULES = _modules()
NAMES = {module.name for module in MODULES}
EXPORTED = {name for name in NAMES if name.startswith(f"{EXPORTED_FOLDER}.")}


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


def _room_of(name: str) -> str:
    return name.partition(".")[2].partition(".")[0]


@pytest.mark.slow
def test_a_room_imports_only_what_the_table_allows() -> None:
    for module in MODULES:
        if module.room in FACE:
            continue
        allowed = MAY_IMPORT[module.room] | GROUND | {module.room}
        for name in _ours(module) - {"autopart"}:
            assert _room_of(name) in allowed, f"{module.name} imports {name}"
        assert "autopart" not in _ours(module), f"{module.name} imports the public names"


def test_the_table_has_every_room_and_no_other() -> None:
    assert {module.room for module in MODULES} - FACE == set(MAY_IMPORT)


def test_the_table_has_no_circle() -> None:
    table: nx.DiGraph[str] = nx.DiGraph()
    table.add_edges_from((room, below) for room, rooms in MAY_IMPORT.items() for below in rooms)
    assert nx.is_directed_acyclic_graph(table)


@pytest.mark.slow
def test_the_certificate_needs_no_solver_and_no_search() -> None:
    """The modules that `verify` loads, directly or through others, contain neither."""
    imports: nx.DiGraph[str] = nx.DiGraph()
    for module in MODULES:
        imports.add_edges_from((module.name, name) for name in _ours(module) - {"autopart"})
    for module in MODULES:
        if module.room == "certificate" and module.name in imports:
            reached = {_room_of(name) for name in nx.descendants(imports, module.name)}
            assert not reached & {"solvers", "search"}, module.name


@pytest.mark.slow
def test_peers_are_read_by_tables_and_commands_only() -> None:
    for module in MODULES:
        if module.room not in PEERS_READERS:
            assert "peers" not in {_room_of(name) for name in _ours(module)}, module.name


def test_at_most_five_modules_stand_loose() -> None:
    loose = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert len(loose) <= 5, sorted(loose)


@pytest.mark.slow
def test_folders_have_no_circle_at_any_depth() -> None:
    """For each folder: the files and folders in it, joined by imports, form no circle."""
    tangles: dict[str, nx.DiGraph[str]] = {}
    for module in MODULES:
        for name in _ours(module) - {"autopart"}:
            here, there = module.name.split("."), name.split(".")
            if module.room in ("", "__main__"):
                continue
            depth = next(
                (d for d, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), 0
            )
            if depth:
                folder = ".".join(here[:depth])
                tangles.setdefault(folder, nx.DiGraph()).add_edge(here[depth], there[depth])
    for folder, graph in tangles.items():
        assert list(nx.simple_cycles(graph)) == [], folder


def test_folders_of_the_runtime_stand_in_their_order() -> None:
    for module in MODULES:
        home = module.name.split(".")
        if module.room != "runtime" or len(home) < 4 or home[2] not in RUNTIME_ORDER:
            continue
        for name in _ours(module):
            other = name.split(".")
            if other[1] != "runtime" or len(other) < 4:
                continue
            assert other[2] in RUNTIME_ORDER, f"{module.name} imports {name}"
            assert RUNTIME_ORDER.index(other[2]) <= RUNTIME_ORDER.index(home[2]), (
                f"{module.name} imports {name}"
            )


def test_packages_hand_nothing_on() -> None:
    """A name is imported from the file that defines it: an `__init__` holds its docstring alone."""
    for module in MODULES:
        if module.path.name == "__init__.py" and module.room:
            assert len(module.tree.body) == 1, module.path


def test_any_is_not_the_name_of_a_number() -> None:
    for module in MODULES:
        for node in module.tree.body:
            target = getattr(node, "target", None) or getattr(node, "targets", [None])[0]
            value = getattr(node, "value", None)
            if isinstance(target, ast.Name) and isinstance(value, ast.Name) and value.id == "Any":
                pytest.fail(f"{module.name}: {target.id} = Any")


def test_tests_mirror_the_package() -> None:
    """A folder of tests is a folder of the package, or one of those that hold something else."""
    tests = Path(__file__).parent
    for folder in (path for path in tests.rglob("*") if path.is_dir()):
        place = folder.relative_to(tests)
        if (
            place.parts[0] in ("support", "golden", "scripts", "fuzz", "models")
            or "__pycache__" in place.parts
        ):
            continue
        assert (PACKAGE / place).is_dir(), place


@pytest.mark.slow
def test_no_import_goes_in_a_circle() -> None:
    """Imports inside functions count: a circle hidden in a function body is one all the same."""
    imports: nx.DiGraph[str] = nx.DiGraph()
    for module in MODULES:
        if module.room:  # the package itself looks its public names up when they are used
            imports.add_edges_from((module.name, name) for name in _ours(module) - {"autopart"})
    assert list(nx.simple_cycles(imports)) == []


@pytest.mark.slow
def test_torch_stays_in_its_rooms() -> None:
    for module in MODULES:
        top = {name.partition(".")[0] for name in _imports(module)}
        if module.room not in TORCH_ROOMS and module.name not in EXPORTED:
            assert not top & {"torch", "transformers"}, module.name


@pytest.mark.slow
def test_exported_modules_stand_alone() -> None:
    own = {name.rpartition(".")[2] for name in EXPORTED}
    assert {"pipeline", "pipeline_plan", "pipeline_check"} <= own
    for module in MODULES:
        top = {name.partition(".")[0] for name in _imports(module)}
        if module.name not in EXPORTED:
            assert not EXPORTED & _ours(module) and not own & top, module.name
            continue
        assert top <= own | {"torch"} | set(sys.stdlib_module_names), module.name


def test_exported_modules_import_each_other_without_a_circle_and_none_imports_the_face() -> None:
    """They import each other by their own names; training loads no check."""
    imports: nx.DiGraph[str] = nx.DiGraph()
    for module in (module for module in MODULES if module.name in EXPORTED):
        own = module.name.rpartition(".")[2]
        assert own == "pipeline" or own.startswith("pipeline_")
        used = [name for name in _imports(module) if name.startswith("pipeline")]
        imports.add_edges_from((own, name) for name in used)
    assert nx.is_directed_acyclic_graph(imports)
    assert imports.in_degree("pipeline") == 0
    assert set(imports.predecessors("pipeline_check")) == {"pipeline"}


@pytest.mark.slow
def test_pulp_stays_in_the_integer_program() -> None:
    for module in MODULES:
        top = {name.partition(".")[0] for name in _imports(module)}
        if not module.name.startswith("autopart.solvers.ilp."):
            assert not top & {"pulp", "highspy"}, module.name


@pytest.mark.slow
def test_words_are_printed_by_the_command_line_only() -> None:
    for module in MODULES:
        called = [node.func for node in ast.walk(module.tree) if isinstance(node, ast.Call)]
        printed = [f for f in called if isinstance(f, ast.Name) and f.id == "print"]
        assert not printed or module.name in EXPORTED, module.path
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
                marks = {ast.unparse(mark) for mark in node.decorator_list}
                assert ast.get_docstring(node) or "overload" in marks, f"{module.path}: {node.name}"


@pytest.mark.slow
def test_files_and_functions_stay_short() -> None:
    for module in MODULES:
        length = len(module.path.read_text(encoding="utf-8").splitlines())
        assert length <= LONGEST_FILE, module.path
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= LONGEST_FUNCTION, f"{module.path}: {node.name} has {length} lines"


@pytest.mark.slow
def test_functions_have_few_parameters() -> None:
    """`self` counts. The fields of a record do not: a class is no function."""
    for module in MODULES:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = node.args
                count = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs)
                count += (given.vararg is not None) + (given.kwarg is not None)
                assert count <= MOST_PARAMETERS, f"{module.path}: {node.name} has {count}"


@pytest.mark.slow
def test_few_files_are_long_and_few_class_names_stand_twice() -> None:
    long = [m.name for m in MODULES if len(m.path.read_text("utf-8").splitlines()) > 300]
    assert len(long) <= 8, long
    named = [
        node.name
        for module in MODULES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
    ]
    twice = {name for name in named if named.count(name) > 1}
    assert len(twice) <= 10, twice


PUBLIC_METHODS = {"make_optimizer", "train_step"}
"""Methods and functions that a user's own training loop calls."""

PASSED_FROM_OUTSIDE = {
    "loss", "full_backward", "last_backward",  # torch passes these to stages of ours
    "loss_kwargs",
    "report",  # run_rank and run_local are chosen first and called by one name
    "strict", "assign",  # trainers pass these to a module's load_state_dict
}  # fmt: skip


class Call(NamedTuple):
    """One call in the package or in `scripts`."""

    num_positional: int
    has_star: bool
    keywords: set[str | None]

    def passes(self, name: str, place: int | None) -> bool:
        """Whether the call passes the parameter `name`, the positional one at `place`."""
        by_place = place is not None and self.num_positional > place
        return self.has_star or by_place or bool(self.keywords & {name, None})


def _calls() -> dict[str, list[Call]]:
    """Every call by the last part of its name; a `partial` is a call of its function."""
    scripts = (PACKAGE.parent / "scripts").glob("*.py")
    trees = [module.tree for module in MODULES]
    trees += [ast.parse(path.read_text(encoding="utf-8")) for path in scripts]
    found: dict[str, list[Call]] = {}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if not isinstance(node, ast.Call):
            continue
        function, arguments = node.func, node.args
        if _last_name(function) == "partial" and arguments:
            function, arguments = arguments[0], arguments[1:]
        starred = any(isinstance(argument, ast.Starred) for argument in arguments)
        call = Call(len(arguments), starred, {keyword.arg for keyword in node.keywords})
        found.setdefault(_last_name(function), []).append(call)
    return found


def _last_name(node: ast.expr) -> str:
    return getattr(node, "attr", getattr(node, "id", ""))


def _optional_parameters(node: ast.FunctionDef) -> Iterator[tuple[str, int | None]]:
    """Each parameter with a default, and its place among the positional ones."""
    positional = [*node.args.posonlyargs, *node.args.args]
    if positional and positional[0].arg in ("self", "cls"):
        positional = positional[1:]
    first = len(positional) - len(node.args.defaults)
    yield from ((parameter.arg, at) for at, parameter in enumerate(positional) if at >= first)
    for parameter, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        if default is not None:
            yield parameter.arg, None


@pytest.mark.slow
def test_no_parameter_is_passed_by_tests_alone() -> None:
    calls, public = _calls(), {*autopart.__all__, *PUBLIC_METHODS, "command", "_root"}
    for module in MODULES:
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.FunctionDef) or node.name in public:
                continue
            if node.name.startswith("__") or module.name.startswith("autopart.trainers.with_"):
                continue  # Python, or a trainer that people use, calls these
            for name, place in _optional_parameters(node):
                passed = any(call.passes(name, place) for call in calls.get(node.name, []))
                assert passed or name in PASSED_FROM_OUTSIDE, f"{module.name}: {node.name}({name})"


@pytest.mark.slow
def test_what_is_caught_is_named() -> None:
    """`except Exception` stands only at the boundary to a user's code, with its reason beside it."""
    for module in MODULES:
        lines = module.path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            assert node.type is not None, f"{module.path}:{node.lineno}: a bare except"
            names = {part.id for part in ast.walk(node.type) if isinstance(part, ast.Name)}
            if names & {"Exception", "BaseException"}:  # in a tuple of errors too
                raises = any(isinstance(n, ast.Raise) and n.exc is None for n in ast.walk(node))
                around = "\n".join(lines[max(0, node.lineno - 3) : node.lineno + 2])
                at_user_code = module.room == "runtime" or module.name in EXPORTED
                assert raises or (at_user_code and "#" in around), f"{module.path}:{node.lineno}"


@pytest.mark.slow
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
    assert subprocess.run([sys.executable, "-c", program], timeout=600).returncode == 0


def test_every_public_name_is_there_and_leads_to_its_home() -> None:
    from autopart import _HOMES  # the table that __getattr__ reads

    assert set(autopart.__all__) == {*_HOMES, "__version__"}
    typed = {
        alias.asname or alias.name
        for node in ast.walk(next(m.tree for m in MODULES if m.name == "autopart"))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("autopart.")
        for alias in node.names
    }
    assert typed == {*_HOMES, "__version__"}
    for name in autopart.__all__:
        home = _HOMES.get(name, "")
        if home.startswith("trainers."):  # their packages take seconds to import
            tree = next(m.tree for m in MODULES if m.name == f"autopart.{home}")
            assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
        else:
            assert getattr(autopart, name) is not None
    assert set(autopart.__all__) <= set(dir(autopart))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'partition_everything'"):
        autopart.partition_everything  # noqa: B018
