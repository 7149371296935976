"""Write docs/schemas/: a JSON Schema for every file and every `--json` document.

Usage: .venv/bin/python scripts/write_schemas.py

The descriptions are the docstrings in the code, below classes and below fields.
"""

import ast
import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from autopart.fidelity.compare import Fidelity
from autopart.peers.answer import PeerAnswer
from autopart.records.calibration import Calibration
from autopart.records.cluster import Cluster
from autopart.records.plan import Plan
from autopart.records.probe import ProbeSummary
from autopart.records.profile import Profile
from autopart.records.run_result import RunResult
from autopart.records.size import Sizing
from autopart.report import (
    calibration_table,
    cluster_table,
    doctor_table,
    explanation_table,
    given_table,
    order_lines,
    plan_comparison_table,
    plan_summary,
    profile_list,
    profile_summary,
    step_summary,
    sweep_table,
)
from autopart.report.page.summary import ReportSummary

FOLDER = Path(__file__).parent.parent / "docs" / "schemas"

FILES = {
    "profile": Profile,
    "cluster": Cluster,
    "plan": Plan,
    "calibration": Calibration,
    "size": Sizing,
}
DOCUMENTS = {
    "profile-summary": profile_summary.ProfileSummary,
    "probe-summary": ProbeSummary,
    "calibrate-summary": calibration_table.CalibrationSummary,
    "clusters-summary": cluster_table.KnownClusters,
    "profiles-summary": profile_list.ProfileList,
    "solve-summary": plan_summary.SolveSummary,
    "import-plan-summary": given_table.ImportPlanSummary,
    "sweep-summary": sweep_table.SweepSummary,
    "bottleneck-summary": PeerAnswer,
    "report-summary": ReportSummary,
    "show-summary": plan_summary.PlanSummary,
    "explain-summary": explanation_table.ExplainSummary,
    "compare-summary": plan_comparison_table.CompareSummary,
    "profile-changes-summary": plan_comparison_table.ProfileChangesSummary,
    "orders-summary": order_lines.OrdersSummary,
    "memory-summary": plan_summary.MemorySummary,
    "simulate-summary": step_summary.SimulateSummary,
    "verify-summary": plan_summary.VerifySummary,
    "run-summary": RunResult,
    "validate-summary": Fidelity,
    "doctor-summary": doctor_table.DoctorSummary,
    "export-summary": plan_summary.ExportSummary,
}


def schemas() -> dict[str, bytes]:
    """Every schema: its content by file name."""
    return {
        f"{name}.json": _schema(kind, is_file=name in FILES)
        for name, kind in (FILES | DOCUMENTS).items()
    }


def _schema(kind: type[msgspec.Struct], *, is_file: bool) -> bytes:
    documented = _field_docs(kind)
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


def _field_docs(kind: type[msgspec.Struct]) -> dict[tuple[str, str], str]:
    """The docstring below each field, on one line, by class and field."""
    classes = set(_classes(msgspec.inspect.type_info(kind)))
    return {
        (cls.__name__, field): text
        for cls in classes
        for home in cls.__mro__
        if home.__module__.startswith("autopart.")
        for node in ast.parse(inspect.getsource(home)).body
        if isinstance(node, ast.ClassDef)
        for field, text in _documented(node)
    }


def _classes(kind: object) -> Iterator[type]:
    """The classes that a type consists of: its own, and all below its fields and its items."""
    if isinstance(kind, msgspec.inspect.StructType | msgspec.inspect.NamedTupleType):
        yield kind.cls
        for field in kind.fields:
            yield from _classes(field.type)
    for name in ("type", "item_type", "key_type", "value_type"):
        yield from _classes(getattr(kind, name)) if hasattr(kind, name) else ()
    for name in ("types", "item_types"):
        for part in getattr(kind, name, ()):
            yield from _classes(part)


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
