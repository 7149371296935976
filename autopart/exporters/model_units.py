"""The units that frameworks never cut: embedding, layers.0, layers.1, …, norm, head.

Frameworks with their own models cut between decoder layers only, and have their own names. A rule,
or the user's `Renaming`, maps each layer to a unit. Several layers may form one unit if one stage
has them all. Layers in the loss function are no unit: the loss follows the head.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from autopart.errors import ExportRefused, UsageError
from autopart.records.plan import Plan
from autopart.text import counted

EMBEDDING, NORM, HEAD = "embedding", "norm", "head"
_LOSS = {"loss", "loss_fn"}
RECOMPUTED_LOSS = "loss"
"""The name of a recomputed loss among a stage's recomputed units. It is not one of its units."""

_INDEX = re.compile(r"layers\.([0-9]{1,9})")
_BLOCK = re.compile(r"(?:.+\.)?(?:layers?|blocks?|h)\.([0-9]{1,9})(?=\.|$)")
_WORDS = {
    EMBEDDING: {
        "embed", "embedding", "embeddings", "tokens", "positions", "wte", "wpe", "embed_tokens",
        "tok_embeddings", "word_embeddings", "position_embeddings", "rotary_emb",
    },
    NORM: {"norm", "ln_f", "final_norm", "final_layernorm", "final_layer_norm"},
    HEAD: {"head", "lm_head", "output"},
}  # fmt: skip


class Renaming(NamedTuple):
    """A pattern for layer names and its unit, such as `transformer.h.{i}` and `layers.{i}`."""

    pattern: str
    unit: str


class UnitStage(NamedTuple):
    """A plan's stage in units."""

    units: tuple[str, ...]
    recompute: tuple[str, ...] = ()
    """The units whose layers are all recomputed, and `RECOMPUTED_LOSS` for a recomputed loss."""
    selective: tuple[str, ...] = ()
    """The same for selective recompute."""


class _Found(NamedTuple):
    unit: str | None
    """The unit; None for the loss."""
    stem: str
    """The module that is the whole unit, judged by its name."""


def parse_renaming(text: str) -> Renaming:
    """Read `PATTERN=UNIT`; raises UsageError unless `{i}` stands on both sides or on neither."""
    pattern, _, unit = (part.strip() for part in text.partition("="))
    if not pattern or not unit:
        raise UsageError(f"'{text}' is not a renaming; write 'transformer.h.{{i}}=layers.{{i}}'")
    if pattern.count("{i}") != unit.count("{i}") or pattern.count("{i}") > 1:
        raise UsageError(f"'{text}': write {{i}} once on both sides, or on neither side")
    return Renaming(pattern, unit)


def units_of(
    plan: Plan, renamings: Sequence[Renaming] = (), *, keep_unknown: bool = False
) -> tuple[UnitStage, ...]:
    """The plan's stages in units, each unit once, in model order.

    With `keep_unknown`, a layer with another name is its own unit.

    Raises ExportRefused where a layer has no known unit, or a cut splits a unit. Raises it too where
    a unit is recomputed in part, or units are missing or out of order.
    """
    # Step 1: name the unit for each layer, and refuse names or cuts that a target cannot express.
    found = [
        [_unit_of(layer, renamings, keep_unknown) for layer in stage.layers]
        for stage in plan.stages
    ]
    _refuse_two_models(found)
    _refuse_cut_units(plan, found)
    # Step 2: join the layers of a unit; a unit is on one stage by now.
    stages = tuple(
        UnitStage(
            units=_once(f.unit for f in names),
            recompute=_chosen(f"stage {index} recomputes", stage.layers, stage.recompute, names),
            selective=_chosen(
                f"stage {index} selectively recomputes", stage.layers, stage.selective, names
            ),
        )
        for index, (stage, names) in enumerate(zip(plan.stages, found, strict=True))
    )
    # Step 3: refuse stages and orders that no target runs.
    for index, stage in enumerate(stages):
        if not stage.units:
            raise ExportRefused(
                f"stage {index} has only the loss, and the target computes the loss on the head's "
                f"stage; solve with --stages {len(stages) - 1}"
            )
    _refuse_disorder([unit for stage in stages for unit in stage.units])
    return stages


def unit_of_layer(
    layer: str, renamings: Sequence[Renaming] = (), *, keep_unknown: bool = False
) -> str | None:
    """The unit of one layer; None for the loss.

    With `keep_unknown`, a layer with another name is its own unit. Without, it raises ExportRefused.
    """
    return _unit_of(layer, renamings, keep_unknown).unit


def block_index(unit: str) -> int | None:
    """A decoder layer's number; None for any other unit."""
    match = _INDEX.fullmatch(unit)
    return int(match[1]) if match else None


def blocks(units: Iterable[str]) -> tuple[int, ...]:
    """The decoder layers' numbers among `units`."""
    return tuple(index for unit in units if (index := block_index(unit)) is not None)


def refuse_recomputed_loss(stages: Sequence[UnitStage], framework: str) -> None:
    """Raise ExportRefused where the loss is recomputed: it is part of no unit."""
    for index, stage in enumerate(stages):
        if RECOMPUTED_LOSS in stage.recompute + stage.selective:
            raise ExportRefused(
                f"stage {index} recomputes 'loss', and {framework} recomputes only its layers; the "
                "nearest plan has --keep-layer loss"
            )


def refuse_other_recompute(stages: Sequence[UnitStage], framework: str) -> None:
    """Raise ExportRefused where a recomputed unit is no decoder layer."""
    refuse_recomputed_loss(stages, framework)
    for index, stage in enumerate(stages):
        for unit in stage.recompute + stage.selective:
            if block_index(unit) is None:
                raise ExportRefused(
                    f"stage {index} recomputes '{unit}', and {framework} recomputes only decoder "
                    f"layers; the nearest plan keeps the stash of '{unit}'"
                )


def recomputes_all(stages: Sequence[UnitStage], framework: str, instead: str) -> bool:
    """Whether all decoder layers are recomputed.

    Raises ExportRefused, which ends with `instead`, where some are and some are not.
    """
    chosen = sum(len(blocks(stage.recompute)) for stage in stages)
    if chosen not in (0, sum(len(blocks(stage.units)) for stage in stages)):
        raise ExportRefused(
            f"the plan recomputes {counted(chosen, 'layer')}, and {framework} recomputes all or none; "
            f"{instead} recomputes single layers"
        )
    return chosen > 0


def refuse_unknown_units(stages: Sequence[UnitStage], framework: str) -> None:
    """Raise ExportRefused where a unit is not part of a language model, or one is missing."""
    units = [unit for stage in stages for unit in stage.units]
    for unit in units:
        if unit not in _WORDS and block_index(unit) is None:
            raise ExportRefused(
                f"{framework} has no unit '{unit}'; map it with --map to embedding, layers.{{i}}, norm "
                "or head"
            )
    for unit in (EMBEDDING, HEAD):
        if unit not in units:
            raise ExportRefused(
                f"no layer in the plan is the {unit}, and {framework} needs its stage; "
                f"name the layer with --map 'NAME={unit}'"
            )


def refuse_elsewhere(stages: Sequence[UnitStage], unit: str, place: int, framework: str) -> None:
    """Raise ExportRefused where `unit` is not on stage `place`."""
    for index, stage in enumerate(stages):
        if unit in stage.units and index != place:
            raise ExportRefused(
                f"'{unit}' is on stage {index}, and {framework} runs it on stage {place}; solve with "
                f"--pin NAME={place} for its layers"
            )


def _unit_of(layer: str, renamings: Sequence[Renaming], keep_unknown: bool) -> _Found:
    name = layer.partition("@")[0]  # a module's second call is part of the module's unit
    # Step 1: the user's renamings, so that they win over every rule. A pattern ends at a dot or at
    # the end of the name: it covers the module and everything inside.
    for pattern, unit in renamings:
        regex = re.escape(pattern).replace(r"\{i\}", "([0-9]+)") + r"(?=\.|$)"
        match = re.match(regex, name)
        if match:
            unit = unit.replace("{i}", match[1]) if "{i}" in unit else unit
            return _Found(unit, match[0])
    # Step 2: the loss, then decoder layers by their number, then usual names by their last word.
    if name in _LOSS:
        return _Found(None, name)
    block = _BLOCK.match(name)
    if block:
        return _Found(f"layers.{int(block[1])}", block[0])
    last = name.rpartition(".")[2]
    for unit, words in _WORDS.items():
        if last in words:
            return _Found(unit, name)
    # Step 3: an unknown name is its own unit where the target takes any name.
    if keep_unknown:
        return _Found(name, name)
    raise ExportRefused(
        f"layer '{layer}' has no known unit in the target's model; "
        f"name its unit with --map, such as --map '{name}=layers.0'"
    )


def _refuse_two_models(found: Sequence[Sequence[_Found]]) -> None:
    # An encoder and a decoder both count from 0, so one unit would stand for two modules.
    stems: dict[str, str] = {}
    for unit, stem in (f for names in found for f in names):
        if unit is None or block_index(unit) is None:
            continue
        if stems.setdefault(unit, stem) != stem:
            raise ExportRefused(
                f"'{stems[unit]}' and '{stem}' would both be '{unit}'; a model with two stacks has no "
                "single numbering, so number the layers with --map"
            )


def _refuse_cut_units(plan: Plan, found: Sequence[Sequence[_Found]]) -> None:
    # `home` has the first stage and layer for each unit; a second stage means a cut inside.
    home: dict[str, tuple[int, str]] = {}
    for index, (stage, names) in enumerate(zip(plan.stages, found, strict=True)):
        for layer, (unit, _) in zip(stage.layers, names, strict=True):
            if unit is None and index + 1 < len(plan.stages):
                raise ExportRefused(
                    f"layer '{layer}' is on stage {index}, and the last stage computes the loss; "
                    f"solve with --pin {layer}={len(plan.stages) - 1}"
                )
            if unit is None:
                continue
            first, other = home.setdefault(unit, (index, layer))
            if first != index:
                raise ExportRefused(
                    f"the plan cuts '{unit}' between layers '{other}' and '{layer}' (stages {first} "
                    f"and {index}), and the target cannot cut it; solve with --same-stage "
                    f"{other},{layer}"
                )


def _chosen(
    does: str, layers: Sequence[str], policy: Sequence[str], found: Sequence[_Found]
) -> tuple[str, ...]:
    """The units whose layers all have a policy; `does` says it in words."""
    chosen = _once(
        f.unit or RECOMPUTED_LOSS for la, f in zip(layers, found, strict=True) if la in policy
    )
    for layer, (unit, _) in zip(layers, found, strict=True):
        if unit in chosen and layer not in policy:
            raise ExportRefused(
                f"{does} '{unit}' but not its layer '{layer}', and the target "
                "recomputes only whole units; the nearest plan recomputes that layer too"
            )
    return chosen


def _refuse_disorder(units: Sequence[str]) -> None:
    # Step 1: decoder layers count from 0 without a gap.
    numbers = blocks(units)
    if numbers != tuple(range(len(numbers))):
        wrong = next(i for i, number in enumerate(numbers) if number != i)
        raise ExportRefused(
            f"the plan runs layers.{numbers[wrong]} where the target runs layers.{wrong}; the target "
            "needs every layer from 0 on, once and in order: check --map"
        )
    # Step 2: the other units stand around them, where present.
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
