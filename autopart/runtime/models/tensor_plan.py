"""How a model wants its weights sharded over a tensor group: its `tp_plan`.

The model file may have a dict `tp_plan`. A Hugging Face model carries one of its own. Both map patterns of
names to styles, and an entry of the file wins. Weights without an entry are left to the sharding pass.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Literal, cast

from torch import nn

from autopart.errors import ModelError

Style = Literal["colwise", "rowwise", "replicate"]

STYLES: Mapping[str, Style] = {
    "colwise": "colwise",
    "rowwise": "rowwise",
    "replicate": "replicate",
    "packed_colwise": "colwise",
    "colwise_gather_output": "colwise",
    "rowwise_split_input": "rowwise",
    "embedding_rowwise": "rowwise",
    "replicated_with_grad_allreduce": "replicate",
}
"""Our styles, and Hugging Face's that mean the same for a weight. Collectives are ours."""

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def weight_styles(model: nn.Module, given: Mapping[str, str] | None, name: str) -> dict[str, Style]:
    """Return the styles of the model's parameters, by their first names.

    `given` is the model file's plan. A pattern names parameters, or modules with parameters; `*` stands
    for one part of a dotted name. Of two entries the one that names the parameter itself counts. Raises
    ModelError where an entry of `given` names no parameter or has an unknown style.
    """
    first: dict[int, str] = {}
    names = {
        every: first.setdefault(id(parameter), every)
        for every, parameter in model.named_parameters(remove_duplicate=False)
    }
    found: dict[str, Style] = {}
    for pattern, style in _by_reach(_carried(model), names):
        if style in STYLES:
            found |= dict.fromkeys(_named(pattern, names), STYLES[style])
    for pattern, style in _by_reach(given or {}, names):
        if style not in STYLES:
            known = ", ".join(STYLES)
            raise ModelError(
                f"{name}: tp_plan gives '{pattern}' the style '{style}'; known: {known}"
            )
        own = _named(pattern, names)
        if not own:
            raise ModelError(
                f"{name}: tp_plan has '{pattern}', which names no parameter; {_near(pattern, names)}"
            )
        found |= dict.fromkeys(own, STYLES[style])
    return found


def _carried(model: nn.Module) -> Mapping[str, str]:
    """Return the plan that a Hugging Face model carries; empty for others."""
    plan = getattr(model, "_tp_plan", None)
    return cast("Mapping[str, str]", plan) if isinstance(plan, dict) else {}


def _by_reach(plan: Mapping[str, str], names: Mapping[str, str]) -> list[tuple[str, str]]:
    """Order entries that name modules before those that name parameters, so that the latter win."""
    return sorted(plan.items(), key=lambda entry: any(_matches(entry[0], name) for name in names))


def _named(pattern: str, names: Mapping[str, str]) -> list[str]:
    """Return the first names of the parameters that a pattern names."""
    of_modules = (every.rpartition(".")[0] for every in names)
    return [
        first
        for (every, first), module in zip(names.items(), of_modules, strict=True)
        if _matches(pattern, every) or _matches(pattern, module)
    ]


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", "[^.]+"), name) is not None


def _near(pattern: str, names: Mapping[str, str]) -> str:
    """Say which names are like the pattern, with `*` for numbers."""
    known = {_NUMBER.sub("*", of) for every in names for of in (every, every.rpartition(".")[0])}
    near = get_close_matches(_NUMBER.sub("*", pattern), sorted(known - {""}), n=3)
    return f"near names: {', '.join(near)}" if near else "parameters have names as in state_dict()"
