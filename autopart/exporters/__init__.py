"""A plan in the words of another framework, one file for each; nothing of it is imported here."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from autopart.errors import UsageError
from autopart.exporters.torch_pipelining import export_to_torch
from autopart.plan import Plan

__all__ = ["TARGETS", "export_plan"]

TARGETS: Mapping[str, Callable[[Plan], dict[str, str]]] = MappingProxyType(
    {"torch": export_to_torch}
)
"""The frameworks that a plan can be exported to."""


def export_plan(plan: Plan, target: str) -> dict[str, str]:
    """The files, by name, that carry `plan` out in the framework `target`.

    Raises ExportRefused, with the nearest plan that would do, where the framework cannot express
    the plan, and UsageError on an unknown target.
    """
    if target not in TARGETS:
        raise UsageError(f"cannot export to '{target}'; known: {', '.join(TARGETS)}")
    return TARGETS[target](plan)
