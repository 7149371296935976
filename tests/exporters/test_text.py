"""Hostile names in exported files: they stay names, and never become code."""

import ast
import json
import subprocess
import tomllib

import msgspec
import pytest
import yaml

from autopart.exporters.model_units import Renaming
from autopart.exporters.targets import TARGETS, export_plan
from autopart.exporters.text import one_line
from autopart.records.plan import Plan
from tests.support.exporters.plans import make_plan
from tests.support.hostile_names import HOSTILE, OBEYED

HALF = len(HOSTILE) // 2
RENAMINGS = tuple(Renaming(name, f"layers.{i}") for i, name in enumerate(HOSTILE))
VERSIONS = [
    (name, version)
    for name, target in TARGETS.items()
    for version in target.versions
    if target.framework.stages is None
]


def hostile_plan(name: str) -> Plan:
    """A plan with hostile names on its layers, and `name` in its model and its version."""
    layers = [["embed", *HOSTILE[:HALF]], [*HOSTILE[HALF:], "norm", "head", "loss"]]
    plan = make_plan(layers, [[0], [1]], 4)
    origin = msgspec.structs.replace(plan.origin, model=f"m{name}.py", autopart=f"0{name}")
    return msgspec.structs.replace(plan, origin=origin)


def check_file(file: str, text: str) -> None:
    """Raise where the file cannot be read in its language, or sends control characters."""
    assert not OBEYED.search(text), file
    match file.rpartition(".")[2]:
        case "py":
            compile(text, file, "exec")
        case "toml":
            tomllib.loads(text)
        case "yaml":
            yaml.safe_load(text)
        case "json":
            json.loads(text)
        case "sh":
            subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        case other:
            assert other == "csv"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_leaves_every_export_readable(name: str) -> None:
    plan = hostile_plan(name)
    for target, version in VERSIONS:
        any_name = TARGETS[target].takes_any_unit or not TARGETS[target].of_units
        renamings = () if any_name else RENAMINGS
        for file, text in export_plan(
            plan, target, version=version, renamings=renamings
        ).files.items():
            check_file(file, text)


def test_hostile_names_are_the_model_s_own_in_the_exported_module() -> None:
    text = export_plan(hostile_plan("x"), "torch").files["pipeline_plan.py"]
    values = {
        node.target.id: ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value
        and node.target.id == "STAGES"
    }  # fmt: skip
    assert [name for stage in values["STAGES"] for name in stage] == [
        "embed", *HOSTILE, "norm", "head", "loss",
    ]  # fmt: skip


def test_a_remark_never_ends_its_comment_or_docstring() -> None:
    for name in HOSTILE:
        line = one_line(name)
        assert "\n" not in line and not OBEYED.search(line)
        assert ast.literal_eval(f'"""{line}"""') == line
