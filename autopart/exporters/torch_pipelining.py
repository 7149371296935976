"""A plan as one Python module of plain ``torch.distributed.pipelining``.

The module cuts the model itself, at run time, by the plan's layer names; it needs torch and the
user's model, but not autopart. What is written here are the plan's decisions as literals, put
into the template beside this file.
"""

import textwrap
from collections.abc import Iterable
from importlib import resources
from string import Template

from autopart.errors import ExportRefused
from autopart.exporters.exported import Exported
from autopart.plan import Plan, orders_of, stage_ranks
from autopart.schedule import dealt
from autopart.schedules import make_schedule

_SCHEDULES = {"gpipe": "ScheduleGPipe", "1f1b": "Schedule1F1B"}
_WIDTH = 96


VERSIONS = ("2.13",)


def export_to_torch(plan: Plan, version: str) -> Exported:
    """The file ``pipeline.py``; raises ExportRefused where torch's schedules cannot run the plan."""
    _refuse_inexpressible(plan)
    folder = resources.files("autopart.exporters")
    template = Template(folder.joinpath("torch_pipelining.py.tmpl").read_text(encoding="utf-8"))
    text = template.substitute(
        model=_one_line(plan.origin.model),
        autopart=_one_line(plan.origin.autopart),
        num_ranks=len(plan.orders),
        stages=_tuple_of(_words(stage.layers, indent=4) for stage in plan.stages),
        ranks=_tuple_of(repr(stage.ranks) for stage in plan.stages),
        schedule=_SCHEDULES[plan.schedule],
        num_microbatches=plan.num_microbatches,
        microbatch_size=plan.microbatch_size,
    )
    return Exported({"pipeline.py": text})


def _refuse_inexpressible(plan: Plan) -> None:
    if plan.schedule not in _SCHEDULES:
        raise ExportRefused(
            f"schedule '{plan.schedule}' is none of those exported to torch, which are "
            f"{', '.join(_SCHEDULES)}; solve with --schedule 1f1b"
        )
    ranks = stage_ranks(plan)
    counts = [len(on) for on in ranks]
    if len(set(counts)) > 1:
        raise ExportRefused(
            f"torch's pipeline stages have one rank each, so every stage needs the same number of "
            f"replicas, and these have {', '.join(map(str, counts))}; the nearest plan has "
            f"{min(counts)} on every stage"
        )
    idle = [rank for rank, order in enumerate(plan.orders) if not order]
    if idle:
        raise ExportRefused(
            f"rank {idle[0]} has no stage, and torch gives each rank one; solve for "
            f"{len(plan.orders) - len(idle)} GPUs"
        )
    if plan.orders != orders_of(make_schedule(plan.schedule, ranks, plan.num_microbatches)):
        raise ExportRefused(
            f"the plan's orders are not those of torch's {_SCHEDULES[plan.schedule]}, which cannot "
            f"be told another order; solve with --schedule {plan.schedule}"
        )
    _refuse_memory_savings(plan)
    _refuse_few_microbatches(plan, counts[0])


def _refuse_memory_savings(plan: Plan) -> None:
    for index, stage in enumerate(plan.stages):
        for deed, layers in (("recomputes", stage.recompute), ("offloads", stage.offload)):
            if layers:
                raise ExportRefused(
                    f"stage {index} {deed} layer '{layers[0]}', which torch's stages cannot be "
                    "told; the nearest plan keeps every stash on its device"
                )


def _refuse_few_microbatches(plan: Plan, replicas: int) -> None:
    fewest = len(dealt(range(replicas), replicas - 1, plan.num_microbatches))
    needed = len(plan.stages) if plan.schedule == "1f1b" else 1
    if fewest < needed:
        other = ", or schedule gpipe, which takes any number" if plan.schedule == "1f1b" else ""
        raise ExportRefused(
            f"torch's {_SCHEDULES[plan.schedule]} needs at least {needed} microbatches for "
            f"{len(plan.stages)} stages, and a replica has {fewest}; the nearest plan has "
            f"{needed * replicas} microbatches instead of {plan.num_microbatches}{other}"
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
