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
from autopart.exporters.shape import csv_of, follows_its_name
from autopart.exporters.torch_schedules import CSV_FILE, TORCH_NAMES, takes
from autopart.plan import Plan, schedule_of, stage_ranks
from autopart.schedule import Schedule, dealt

_SINGLE = ("GPipe", "1F1B")
"""Of torch's names those whose ranks have one stage each, in any order of the ranks."""
_WIDTH = 96


VERSIONS = ("2.13",)


def export_to_torch(plan: Plan, version: str) -> Exported:
    """The file ``pipeline.py``, and the orders where no schedule of torch's stands for them.

    Raises ExportRefused where torch cannot run the plan: stages with different numbers of replicas,
    idle ranks, and layers recomputed or offloaded.
    """
    replicas = _replicas(plan)
    _refuse_memory_savings(plan)
    name = _torch_name(plan, replicas)
    files = () if name else _schedule_files(plan, replicas)
    folder = resources.files("autopart.exporters")
    template = Template(folder.joinpath("torch_pipelining.py.tmpl").read_text(encoding="utf-8"))
    text = template.substitute(
        model=_one_line(plan.origin.model),
        autopart=_one_line(plan.origin.autopart),
        num_ranks=len(plan.orders),
        stages=_tuple_of(_words(stage.layers, indent=4) for stage in plan.stages),
        ranks=_tuple_of(repr(stage.ranks) for stage in plan.stages),
        schedule=f"schedules.Schedule{name}" if name else "None",
        schedule_files=_words((file for file, _ in files), indent=17),
        splits_backward=any(op in "IW" for order in schedule_of(plan) for _, op, _ in order),
        num_microbatches=plan.num_microbatches,
        microbatch_size=plan.microbatch_size,
    )
    return Exported({"pipeline.py": text, **dict(files)})


def _replicas(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """For each replica the rank of each stage; raises ExportRefused where they are not alike."""
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
    replicas = tuple(zip(*ranks, strict=True))
    for rank in range(len(plan.orders)):
        of = [index for index, on in enumerate(replicas) if rank in on]
        if len(of) > 1:
            raise ExportRefused(
                f"rank {rank} runs stages of replicas {of[0]} and {of[1]}, and torch has one schedule "
                "for each rank; the nearest plan gives each replica ranks of its own"
            )
    return replicas


def _torch_name(plan: Plan, replicas: Sequence[Sequence[int]]) -> str | None:
    """Torch's name for the plan's schedule, where its class makes the plan's orders."""
    name = TORCH_NAMES.get(plan.schedule)
    if name is None or not follows_its_name(plan):
        return None
    for replica, on in enumerate(replicas):
        ranks = list(dict.fromkeys(on))
        microbatches = len(dealt(range(len(replicas)), replica, plan.num_microbatches))
        # Torch puts the stages of a rank where its number in the group says.
        if name not in _SINGLE and ranks != sorted(ranks):
            return None
        if not takes(name, len(ranks), len(on) // len(ranks), microbatches):
            return None
    return name


def _schedule_files(plan: Plan, replicas: Sequence[Sequence[int]]) -> tuple[tuple[str, str], ...]:
    """For each replica its orders' file name and text; replicas that are alike share a file."""
    texts = [csv_of(_orders_of(plan, index, replicas)) for index in range(len(replicas))]
    if len(set(texts)) == 1:
        return ((CSV_FILE, texts[0]),) * len(texts)
    return tuple((f"autopart_schedule_{index}.csv", text) for index, text in enumerate(texts))


def _orders_of(plan: Plan, replica: int, replicas: Sequence[Sequence[int]]) -> Schedule:
    """A replica's orders by rising rank, which is torch's order within a group, and its
    microbatches counted from 0."""
    schedule, count = schedule_of(plan), len(replicas)
    return tuple(
        tuple(action._replace(microbatch=action.microbatch // count) for action in schedule[rank])
        for rank in sorted(set(replicas[replica]))
    )


def _refuse_memory_savings(plan: Plan) -> None:
    for index, stage in enumerate(plan.stages):
        for deed, layers in (("recomputes", stage.recompute), ("offloads", stage.offload)):
            if layers:
                raise ExportRefused(
                    f"stage {index} {deed} layer '{layers[0]}', which torch's stages cannot be "
                    "told; the nearest plan keeps every stash on its device"
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
