"""A plan as one Python module of plain ``torch.distributed.pipelining``.

The module cuts the model itself, at run time, by the plan's layer names; it needs torch and the
user's model, but not autopart. What is written here are the plan's decisions as literals, put
into the template beside this file.
"""

import textwrap
from collections.abc import Iterable, Sequence
from importlib import resources
from string import Template

from autopart.errors import ExportRefused
from autopart.exporters.exported import Exported
from autopart.exporters.shape import csv_of, refuse_offload, refuse_shared_optimizer
from autopart.exporters.torch_replicas import orders_of_replica, replicas_of, torch_name
from autopart.exporters.torch_schedules import CSV_FILE
from autopart.plan import Plan, schedule_of

_WIDTH = 96


VERSIONS = ("2.13",)


def export_to_torch(plan: Plan, version: str) -> Exported:
    """The file ``pipeline.py``, and the orders where no schedule of torch's stands for them.

    Raises ExportRefused where torch cannot run the plan: stages with different numbers of replicas,
    idle ranks, and layers offloaded.
    """
    replicas = replicas_of(plan)
    refuse_offload(plan, "torch")
    refuse_shared_optimizer(plan, "the module")
    _refuse_recomputed_loss(plan)
    name = torch_name(plan, replicas)
    files = () if name else _schedule_files(plan, replicas)
    folder = resources.files("autopart.exporters")
    template = Template(folder.joinpath("torch_pipelining.py.tmpl").read_text(encoding="utf-8"))
    text = template.substitute(
        model=_one_line(plan.origin.model),
        autopart=_one_line(plan.origin.autopart),
        num_ranks=len(plan.orders),
        stages=_tuple_of(_words(stage.layers, indent=4) for stage in plan.stages),
        recomputed=_words((la for stage in plan.stages for la in stage.recompute), indent=13),
        selective=_words((la for stage in plan.stages for la in stage.selective), indent=12),
        ranks=_tuple_of(repr(stage.ranks) for stage in plan.stages),
        schedule=f"schedules.Schedule{name}" if name else "None",
        schedule_files=_words((file for file, _ in files), indent=17),
        splits_backward=any(op in "IW" for order in schedule_of(plan) for _, op, _ in order),
        num_microbatches=plan.num_microbatches,
        microbatch_size=plan.microbatch_size,
    )
    return Exported({"pipeline.py": text, **dict(files)})


def _schedule_files(plan: Plan, replicas: Sequence[Sequence[int]]) -> tuple[tuple[str, str], ...]:
    """For each replica its orders' file name and text; replicas that are alike share a file."""
    texts = [csv_of(orders_of_replica(plan, index, replicas)) for index in range(len(replicas))]
    if len(set(texts)) == 1:
        return ((CSV_FILE, texts[0]),) * len(texts)
    return tuple((f"autopart_schedule_{index}.csv", text) for index, text in enumerate(texts))


def _refuse_recomputed_loss(plan: Plan) -> None:
    for index, stage in enumerate(plan.stages):
        for layer in (*stage.recompute, *stage.selective):
            if layer in ("loss", "model"):
                raise ExportRefused(
                    f"stage {index} recomputes '{layer}', which is no module, and only modules are "
                    f"recomputed; the nearest plan has --keep-layer {layer}"
                )


def _tuple_of(items: Iterable[str]) -> str:
    """A tuple literal with one line for each item."""
    return "(\n" + "".join(f"    {item},\n" for item in items) + ")"


def _words(words: Iterable[str], indent: int) -> str:
    """A tuple literal of strings, broken into lines where it is long."""
    items = [f"{_quoted(word)}," for word in words]
    line = f"({' '.join(items)})"
    if len(line) + indent < _WIDTH:
        return line
    inner = " " * (indent + 4)
    wrapped = textwrap.fill(
        " ".join(items), _WIDTH, initial_indent=inner, subsequent_indent=inner,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return f"(\n{wrapped}\n{' ' * indent})"


def _quoted(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _one_line(text: str) -> str:
    """Text that cannot end the docstring it stands in."""
    return " ".join(text.split()).replace("\\", "/").replace('"""', "'''")
