"""A plan's layers as the units that a framework moves whole: embedding, layers.0, layers.1, …, norm,
head.

Frameworks with models of their own cut between decoder layers only, and name them their own way. A
rule, or a `Renaming` that the user gives, says which unit a layer of the plan belongs to; several
layers of the plan may be one unit, as long as they are on one stage. What is worked out by the loss
function alone is no unit: the loss follows the head.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from autopart.errors import ExportRefused, UsageError
from autopart.plan import Plan

EMBEDDING, NORM, HEAD = "embedding", "norm", "head"
_LOSS = {"loss", "loss_fn"}

_INDEX = re.compile(r"layers\.([0-9]+)")
_BLOCK = re.compile(r"(?:.+\.)?(?:layers?|blocks?|h)\.([0-9]+)(?=\.|$)")
_WORDS = {
    EMBEDDING: {
        "embed", "embedding", "embeddings", "tokens", "positions", "wte", "wpe", "embed_tokens",
        "tok_embeddings", "word_embeddings", "position_embeddings", "rotary_emb",
    },
    NORM: {"norm", "ln_f", "final_norm", "final_layernorm", "final_layer_norm"},
    HEAD: {"head", "lm_head", "output"},
}  # fmt: skip


class Renaming(NamedTuple):
    """A pattern of layer names, and the unit that they are: `transformer.h.{i}`, `layers.{i}`."""

    pattern: str
    unit: str


class UnitStage(NamedTuple):
    """A stage of the plan in units."""

    units: tuple[str, ...]
    recompute: tuple[str, ...] = ()
    """The units whose layers are all recomputed."""


class _Found(NamedTuple):
    unit: str | None
    """None for the loss."""
    stem: str
    """The module that is the whole unit, as far as its name tells."""


def parse_renaming(text: str) -> Renaming:
    """Read `PATTERN=UNIT`; raises UsageError unless both sides have `{i}`, or neither."""
    pattern, _, unit = (part.strip() for part in text.partition("="))
    if not pattern or not unit:
        raise UsageError(f"'{text}' is no renaming; write 'transformer.h.{{i}}=layers.{{i}}'")
    if pattern.count("{i}") != unit.count("{i}") or pattern.count("{i}") > 1:
        raise UsageError(f"'{text}': write {{i}} once on both sides, or on neither")
    return Renaming(pattern, unit)


def units_of(
    plan: Plan, renamings: Sequence[Renaming] = (), *, keep_unknown: bool = False
) -> tuple[UnitStage, ...]:
    """The plan's stages in units, each unit once and in the order of the model; with `keep_unknown` a
    layer of another name is a unit of its own.

    Raises ExportRefused where a layer is no unit that is known, a unit is cut, a unit is recomputed
    in part, or units are missing or out of order.
    """
    found = [
        [_unit_of(layer, renamings, keep_unknown) for layer in stage.layers]
        for stage in plan.stages
    ]
    _refuse_two_models(found)
    _refuse_cut_units(plan, found)
    stages = tuple(
        UnitStage(
            units=_once(f.unit for f in names),
            recompute=_recomputed(index, stage.layers, stage.recompute, names),
        )
        for index, (stage, names) in enumerate(zip(plan.stages, found, strict=True))
    )
    for index, stage in enumerate(stages):
        if not stage.units:
            raise ExportRefused(
                f"stage {index} has the loss alone, and the target works it out where the head is; "
                f"solve with --stages {len(stages) - 1}"
            )
    _refuse_disorder([unit for stage in stages for unit in stage.units])
    return stages


def block_index(unit: str) -> int | None:
    """The number of a decoder layer, or None for any other unit."""
    match = _INDEX.fullmatch(unit)
    return int(match[1]) if match else None


def blocks(units: Iterable[str]) -> tuple[int, ...]:
    """The numbers of the decoder layers among `units`."""
    return tuple(index for unit in units if (index := block_index(unit)) is not None)


def refuse_other_recompute(stages: Sequence[UnitStage], framework: str) -> None:
    """Raise ExportRefused where anything but decoder layers is recomputed."""
    for index, stage in enumerate(stages):
        for unit in stage.recompute:
            if block_index(unit) is None:
                raise ExportRefused(
                    f"stage {index} recomputes '{unit}', and {framework} recomputes decoder layers "
                    "only; the nearest plan recomputes the layers and keeps what else it stashes"
                )


def refuse_unknown_units(stages: Sequence[UnitStage], framework: str) -> None:
    """Raise ExportRefused where a unit is none of those a language model has, or one is missing."""
    units = [unit for stage in stages for unit in stage.units]
    for unit in units:
        if unit not in _WORDS and block_index(unit) is None:
            raise ExportRefused(
                f"{framework} knows no unit '{unit}'; --map it to embedding, layers.{{i}}, norm or "
                "head"
            )
    for unit in (EMBEDDING, HEAD):
        if unit not in units:
            raise ExportRefused(
                f"no layer of the plan is the {unit}, which {framework} must be told the stage of; "
                f"name it: --map 'NAME={unit}'"
            )


def refuse_elsewhere(stages: Sequence[UnitStage], unit: str, place: int, framework: str) -> None:
    """Raise ExportRefused where `unit` is on another stage than `place`."""
    for index, stage in enumerate(stages):
        if unit in stage.units and index != place:
            raise ExportRefused(
                f"'{unit}' is on stage {index}, and {framework} runs it on stage {place}; solve with "
                f"--pin NAME={place} for its layers"
            )


def _unit_of(layer: str, renamings: Sequence[Renaming], keep_unknown: bool) -> _Found:
    name = layer.partition("@")[0]
    for pattern, unit in renamings:
        regex = re.escape(pattern).replace(r"\{i\}", "([0-9]+)") + r"(?=\.|$)"
        match = re.match(regex, name)
        if match:
            unit = unit.replace("{i}", match[1]) if "{i}" in unit else unit
            return _Found(unit, match[0])
    if name in _LOSS:
        return _Found(None, name)
    block = _BLOCK.match(name)
    if block:
        return _Found(f"layers.{int(block[1])}", block[0])
    last = name.rpartition(".")[2]
    for unit, words in _WORDS.items():
        if last in words:
            return _Found(unit, name)
    if keep_unknown:
        return _Found(name, name)
    raise ExportRefused(
        f"nothing says what layer '{layer}' is in the target's model; "
        f"name the unit that it belongs to: --map '{name}=layers.0'"
    )


def _refuse_two_models(found: Sequence[Sequence[_Found]]) -> None:
    stems: dict[str, str] = {}
    for unit, stem in (f for names in found for f in names):
        if unit is None or block_index(unit) is None:
            continue
        if stems.setdefault(unit, stem) != stem:
            raise ExportRefused(
                f"'{stems[unit]}' and '{stem}' would both be '{unit}'; a model of two stacks has no "
                "single numbering of its layers: give each its numbers with --map"
            )


def _refuse_cut_units(plan: Plan, found: Sequence[Sequence[_Found]]) -> None:
    home: dict[str, tuple[int, str]] = {}
    for index, (stage, names) in enumerate(zip(plan.stages, found, strict=True)):
        for layer, (unit, _) in zip(stage.layers, names, strict=True):
            if unit is None and index + 1 < len(plan.stages):
                raise ExportRefused(
                    f"layer '{layer}' is on stage {index}, and the loss is worked out on the last; "
                    f"solve with --pin {layer}={len(plan.stages) - 1}"
                )
            if unit is None:
                continue
            first, other = home.setdefault(unit, (index, layer))
            if first != index:
                raise ExportRefused(
                    f"the plan cuts '{unit}' between layers '{other}' and '{layer}' (stages {first} "
                    f"and {index}), and the target moves it whole; solve with --same-stage "
                    f"{other},{layer}"
                )


def _recomputed(
    index: int, layers: Sequence[str], recompute: Sequence[str], found: Sequence[_Found]
) -> tuple[str, ...]:
    chosen = _once(f.unit or "loss" for la, f in zip(layers, found, strict=True) if la in recompute)
    for layer, (unit, _) in zip(layers, found, strict=True):
        if unit in chosen and layer not in recompute:
            raise ExportRefused(
                f"stage {index} recomputes '{unit}' but not its layer '{layer}', and the target "
                "recomputes it whole or not at all; the nearest plan recomputes that layer too"
            )
    return chosen


def _refuse_disorder(units: Sequence[str]) -> None:
    numbers = blocks(units)
    if numbers != tuple(range(len(numbers))):
        wrong = next(i for i, number in enumerate(numbers) if number != i)
        raise ExportRefused(
            f"the plan runs layers.{numbers[wrong]} where the target runs layers.{wrong}; it needs "
            "every layer from 0 on, once and in order: check --map"
        )
    places = [units.index(EMBEDDING)] if EMBEDDING in units else []
    places += [units.index(f"layers.{number}") for number in numbers]
    places += [units.index(unit) for unit in (NORM, HEAD) if unit in units]
    if places != sorted(places):
        raise ExportRefused(
            "the target runs embedding, layers, norm and head in this order, and the plan runs "
            f"{', '.join(units[at] for at in sorted(places))}"
        )


def _once(units: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(unit for unit in units if unit is not None))
