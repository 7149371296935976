"""Write docs/schemas/: the JSON Schema of every file and of every `--json` document.

Usage: .venv/bin/python scripts/write_schemas.py

The descriptions are the docstrings in the code, those under the fields included.
"""

import ast
import importlib
import inspect
import itertools
from pathlib import Path
from typing import Any

import msgspec

from autopart.cluster import Cluster
from autopart.fidelity import Fidelity
from autopart.foreign import ForeignAnswer
from autopart.plan import Plan
from autopart.probe_result import ProbeSummary
from autopart.profile import Profile
from autopart.report import step_summary, summary, sweep_table
from autopart.run_result import RunResult

FOLDER = Path(__file__).parent.parent / "docs" / "schemas"

FILES = {"profile": Profile, "cluster": Cluster, "plan": Plan}
DOCUMENTS = {
    "profile-summary": summary.ProfileSummary,
    "probe-summary": ProbeSummary,
    "solve-summary": summary.SolveSummary,
    "sweep-summary": sweep_table.SweepSummary,
    "bottleneck-summary": ForeignAnswer,
    "show-summary": summary.PlanSummary,
    "memory-summary": summary.MemorySummary,
    "simulate-summary": step_summary.SimulateSummary,
    "verify-summary": summary.VerifySummary,
    "run-summary": RunResult,
    "validate-summary": Fidelity,
    "export-summary": summary.ExportSummary,
}
TORCH_FREE = (
    "graph",
    "profile",
    "cluster",
    "training",
    "problem",
    "plan",
    "run_result",
    "probe_result",
    "fidelity",
    "foreign",
    "report.memory_table",
    "report.step_summary",
    "report.summary",
    "report.sweep_table",
)


def schemas() -> dict[str, bytes]:
    """File name and content of every schema."""
    documented = _field_docs()
    return {
        f"{name}.json": _schema(kind, documented, is_file=name in FILES)
        for name, kind in (FILES | DOCUMENTS).items()
    }


def _schema(
    kind: type[msgspec.Struct], documented: dict[tuple[str, str], str], *, is_file: bool
) -> bytes:
    schema: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema |= msgspec.json.schema(kind)
    for name, definition in schema["$defs"].items():
        for field, described in definition.get("properties", {}).items():
            if (name, field) in documented:
                described["description"] = documented[name, field]
    if is_file:
        # Their defaults are for the code; a file without them is refused.
        schema["$defs"][kind.__name__]["required"][:0] = ["format", "version"]
    return msgspec.json.format(msgspec.json.encode(schema), indent=1) + b"\n"


def _field_docs() -> dict[tuple[str, str], str]:
    """The docstring under each field of each class, on one line."""
    docs: dict[tuple[str, str], str] = {}
    for room in TORCH_FREE:
        source = inspect.getsource(importlib.import_module(f"autopart.{room}"))
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef):
                docs |= {(node.name, field): text for field, text in _documented(node)}
    return docs


def _documented(node: ast.ClassDef) -> list[tuple[str, str]]:
    return [
        (field.target.id, " ".join(below.value.value.split()))
        for field, below in itertools.pairwise(node.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    ]


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in schemas().items():
        (FOLDER / name).write_bytes(content)
