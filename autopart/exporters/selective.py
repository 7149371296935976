"""Selective recompute in exports: refusals, and one file for frameworks that let a subclass wrap a layer.

The file keeps what autopart's executor keeps: the results of products with weights, but not of the
last product of a layer. The executor keeps that one too where more than sums follow it.
"""

from collections.abc import Sequence
from importlib import resources
from string import Template

from autopart.errors import ExportRefused
from autopart.exporters.model_units import UnitStage, blocks
from autopart.exporters.text import mark
from autopart.records.plan import Plan
from autopart.text import counted

SELECTIVE_FILE = "autopart_selective.py"


def selective_files(plan: Plan, stages: Sequence[UnitStage]) -> dict[str, str]:
    """The file by its name, where a unit is recomputed selectively; else nothing."""
    if not any(stage.selective for stage in stages):
        return {}
    folder = resources.files("autopart.exporters")
    text = folder.joinpath(f"{SELECTIVE_FILE}.tmpl").read_text(encoding="utf-8")
    return {SELECTIVE_FILE: Template(text).substitute(mark=mark(plan))}


def refuse_selective(stages: Sequence[UnitStage], why: str) -> None:
    """Raise ExportRefused where a unit is recomputed selectively; `why` is the framework's reason."""
    for index, stage in enumerate(stages):
        if stage.selective:
            raise ExportRefused(
                f"stage {index} recomputes '{stage.selective[0]}' except its products with weights, and "
                f"{why}; the nearest plans recompute the whole layer, or keep its whole stash; --to torch, "
                "torchtitan (0.3) and deepspeed recompute single layers so"
            )


def selects_all(stages: Sequence[UnitStage], framework: str) -> bool:
    """Whether all decoder layers are recomputed selectively.

    Raises ExportRefused where some are and some are not.
    """
    chosen = sum(len(blocks(stage.selective)) for stage in stages)
    if chosen < sum(len(blocks(stage.units)) for stage in stages):
        refuse_selective(
            stages,
            f"{framework} recomputes parts of all layers alike or of none, and the plan has "
            f"{counted(chosen, 'such layer')}; --recompute selective makes a plan with all",
        )
    return chosen > 0
