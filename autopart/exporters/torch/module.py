"""The export of a plan as Python modules of plain ``torch.distributed.pipelining``.

The folder `exported` has the modules: `pipeline.py`, and `pipeline_*.py` beside it. Only `pipeline_plan.py`
changes from plan to plan: its constants become the plan's decisions. The modules cut the model at run time by
the plan's layer names. They need torch and the user's model, but not autopart.
"""

import ast
from collections.abc import Iterable, Sequence
from importlib import resources

from autopart.errors import ExportRefused
from autopart.exporters.exported import Exported
from autopart.exporters.pipeline_shape import refuse_offload, refuse_shared_optimizer
from autopart.exporters.torch.schedules import CSV_FILE
from autopart.records.plan import Plan, cast_of, schedule_of
from autopart.records.torch_replicas import orders_of_replica, replicas_of, torch_name
from autopart.schedules.torch_names import csv_of
from autopart.text import quoted

_WIDTH = 96
_FACE, _PLAN = "pipeline.py", "pipeline_plan.py"

VERSIONS = ("2.13",)


def export_to_torch(plan: Plan, version: str) -> Exported:
    """Write ``pipeline.py`` and its parts, and a file with orders where no torch schedule gives them.

    Raises ExportRefused where torch cannot run the plan: stages with different numbers of replicas,
    idle ranks, or offloaded layers.
    """
    replicas = replicas_of(plan)
    refuse_offload(plan, "torch")
    refuse_shared_optimizer(plan, "the module")
    _refuse_recomputed_loss(plan)
    name = torch_name(plan, replicas)
    files = () if name else _schedule_files(plan, replicas)
    written = _with_plan(
        MODEL=quoted(plan.origin.model),
        AUTOPART=quoted(plan.origin.autopart),
        STAGES=_tuple_of(_words(stage.layers, indent=4) for stage in plan.stages),
        RECOMPUTED=_words((la for stage in plan.stages for la in stage.recompute), indent=30),
        SELECTIVE=_words((la for stage in plan.stages for la in stage.selective), indent=29),
        RANKS=_tuple_of(repr(stage.ranks) for stage in plan.stages),
        SCHEDULE=f"schedules.Schedule{name}" if name else "None",
        SCHEDULE_FILES=_words((file for file, _ in files), indent=34),
        SPLITS_BACKWARD=any(op in "IW" for order in schedule_of(plan) for _, op, _ in order),
        NUM_MICROBATCHES=plan.num_microbatches,
        MICROBATCH_SIZE=plan.microbatch_size,
        DTYPE=quoted(plan.origin.dtype),
        CASTS=cast_of(plan) is not None,
    )
    return Exported({**_sources(), _PLAN: written, **dict(files)})


def _sources() -> dict[str, str]:
    """The text of each exported module by its file name, ``pipeline.py`` first."""
    folder = resources.files("autopart.exporters.torch.exported")
    found = (file.name for file in folder.iterdir())
    names = sorted(name for name in found if name.startswith("pipeline_") and name.endswith(".py"))
    return {name: folder.joinpath(name).read_text(encoding="utf-8") for name in (_FACE, *names)}


def _with_plan(**literals: object) -> str:
    """The text of `pipeline_plan.py`, with `literals` as the constants in its block."""
    text = _sources()[_PLAN]
    lines = text.splitlines(keepends=True)
    # From the last constant to the first, so that line numbers before it stay true.
    for node in reversed(ast.parse(text).body):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        name = target.id if isinstance(target, ast.Name) else ""
        value = getattr(node, "value", None)
        if name not in literals or not isinstance(value, ast.expr):
            continue
        # A literal starts behind "NAME = " and may end before a comment on the same line.
        first, last = value.lineno - 1, (value.end_lineno or value.lineno) - 1
        before, behind = lines[first][: value.col_offset], lines[last][value.end_col_offset :]
        lines[first : last + 1] = [f"{before}{literals.pop(name)}{behind}"]
    assert not literals, f"{_PLAN} has no constants {sorted(literals)}"
    return "".join(lines)


def _schedule_files(plan: Plan, replicas: Sequence[Sequence[int]]) -> tuple[tuple[str, str], ...]:
    """The order file's name and text for each replica. Equal replicas share one file."""
    texts = [csv_of(orders_of_replica(plan, index, replicas)) for index in range(len(replicas))]
    if len(set(texts)) == 1:
        return ((CSV_FILE, texts[0]),) * len(texts)
    return tuple((f"autopart_schedule_{index}.csv", text) for index, text in enumerate(texts))


def _refuse_recomputed_loss(plan: Plan) -> None:
    for index, stage in enumerate(plan.stages):
        for layer in (*stage.recompute, *stage.selective):
            if layer in ("loss", "model"):
                raise ExportRefused(
                    f"stage {index} recomputes '{layer}', which is not a module, and torch recomputes "
                    f"only modules; the nearest plan has --keep-layer {layer}"
                )


def _tuple_of(items: Iterable[str]) -> str:
    """A tuple literal with one line per item."""
    return "(\n" + "".join(f"    {item},\n" for item in items) + ")"


def _words(words: Iterable[str], indent: int) -> str:
    """A tuple literal with strings, wrapped where it is long."""
    items = [f"{quoted(word)}," for word in words]
    line = f"({' '.join(items)})"
    if len(line) + indent < _WIDTH:
        return line
    # A line breaks between two strings only: a name may hold spaces.
    inner = " " * (indent + 4)
    lines = [inner + items[0]]
    for item in items[1:]:
        if len(lines[-1]) + 1 + len(item) > _WIDTH:
            lines.append(inner + item)
        else:
            lines[-1] += f" {item}"
    return "\n".join(["(", *lines, f"{' ' * indent})"])
