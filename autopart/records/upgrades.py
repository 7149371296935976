"""Upgrades for older files, each from one version to the next.

A file is upgraded from version v to v + 1 until it has the current version. Files are always written
in the current version.
"""

from collections.abc import Callable
from typing import Any

Tree = dict[str, Any]
"""A decoded JSON object: text, numbers, lists and objects by key."""

SPLIT_BACKWARD = "split_backward"
SPLIT_BACKWARD_IN_1 = "halves"
"""The key for a layer's split backward in version 1."""


def profile_from_1(profile: Tree) -> Tree:
    """A version 1 profile in version 2."""
    return _layers_renamed(profile, SPLIT_BACKWARD_IN_1, SPLIT_BACKWARD) | {"version": 2}


def profile_from_2(profile: Tree) -> Tree:
    """A version 2 profile in version 3, which may have tensor variants."""
    return profile | {"version": 3}


def profile_from_3(profile: Tree) -> Tree:
    """A version 3 profile in version 4, whose variants have a rank group in place of a tensor degree."""
    variants = profile.get("variants")
    if not isinstance(variants, list):
        return profile | {"version": 4}
    return profile | {
        "variants": [_with_group(one, ("degree", "sequence_parallel")) for one in variants],
        "version": 4,
    }


def profile_as_1(profile: Tree) -> Tree:
    """A version 4 profile in version 1, the reverse of the upgrades. Variants stay as in version 3."""
    own = {key: profile[key] for key in profile if key != "variants" or profile[key]}
    if "variants" in own:
        own["variants"] = [_without_group(one) for one in own["variants"]]
    return _layers_renamed(own, SPLIT_BACKWARD, SPLIT_BACKWARD_IN_1) | {"version": 1}


def plan_from_2(plan: Tree) -> Tree:
    """A version 2 plan in version 3: the gap over a lower bound of 0 is unknown."""
    match plan:
        case {"certificate": {"lower_bound": 0, "gap": 0} as certificate}:
            return plan | {"certificate": certificate | {"gap": None}, "version": 3}
        case _:
            return plan | {"version": 3}


def plan_from_3(plan: Tree) -> Tree:
    """A version 3 plan in version 4, which may have a tensor degree."""
    return plan | {"version": 4}


def plan_from_4(plan: Tree) -> Tree:
    """A version 4 plan in version 5, with rank groups in place of tensor degrees."""
    found = _with_group(plan, ("tensor",))
    for name in ("stages", "sizes"):
        if isinstance(plan.get(name), list):
            found[name] = [_with_group(one, ("tensor",)) for one in plan[name]]
    match plan:
        case {"demands": {"tensor": {"degree": degree, **rest}} as demands}:
            others = {key: demands[key] for key in demands if key != "tensor"}
            found["demands"] = others | {"group": {"tensor": degree} | rest}
        case _:
            pass
    return found | {"version": 5}


UPGRADES: dict[tuple[str, int], Callable[[Tree], Tree]] = {
    ("autopart-profile", 1): profile_from_1,
    ("autopart-profile", 2): profile_from_2,
    ("autopart-profile", 3): profile_from_3,
    ("autopart-plan", 2): plan_from_2,
    ("autopart-plan", 3): plan_from_3,
    ("autopart-plan", 4): plan_from_4,
}
"""For each format and older version, the function that gives the next version."""


def _layers_renamed(profile: Tree, old: str, new: str) -> Tree:
    """A profile whose layers have the key `new` in place of `old`, at the same position.

    A tree without layers comes back unchanged: the strict decoder then names the mistake.
    """
    match profile:
        case {"graph": {"layers": [*layers]} as graph} if all(
            isinstance(la, dict) for la in layers
        ):
            renamed = [{new if key == old else key: la[key] for key in la} for la in layers]
            return profile | {"graph": graph | {"layers": renamed}}
        case _:
            return profile


def _with_group(owner: Any, keys: tuple[str, ...]) -> Any:
    """An object of an older file with `group` in place of its tensor degree; unchanged where it has none."""
    match owner:
        case {"tensor": {"degree": degree, "sequence_parallel": split}} if "tensor" in keys:
            pass
        case {"degree": degree, "sequence_parallel": split} if "degree" in keys:
            pass
        case _:
            return owner
    others = {key: owner[key] for key in owner if key not in keys}
    return {"group": {"tensor": degree, "sequence_parallel": split}} | others


def _without_group(variant: Tree) -> Tree:
    """A variant in the words of version 3, which had tensor degrees alone; a context degree stays."""
    group = variant["group"]
    old = {
        "degree": group.get("tensor", 1),
        "sequence_parallel": group.get("sequence_parallel", False),
    }
    rest = {key: group[key] for key in group if key not in ("tensor", "sequence_parallel")}
    return old | rest | {key: variant[key] for key in variant if key != "group"}
