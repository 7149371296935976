"""From units to layers: the stages of a layout, by the layers of a profile.

A framework's layout names units: embedding, decoder layers, norm, head. `exporters/model_units.py` has the
rule that maps each layer to its unit. The loss has no unit; it is on the last stage.
"""

from collections.abc import Iterable, Sequence

from autopart.errors import UsageError
from autopart.exporters.model_units import (
    EMBEDDING,
    HEAD,
    NORM,
    Renaming,
    block_index,
    unit_of_layer,
)
from autopart.records.layer_graph import LayerGraph
from autopart.text import counted, in_words

Units = tuple[tuple[str, ...], ...]
"""For each stage its units."""
StageLayers = tuple[tuple[str, ...], ...]
"""For each stage its layers, in the profile's order."""


def num_blocks(graph: LayerGraph, renamings: Sequence[Renaming] = ()) -> int:
    """The number of decoder layers in a profile."""
    units = (unit_of_layer(layer.name, renamings, keep_unknown=True) for layer in graph.layers)
    return len({block_index(unit) for unit in units if unit is not None} - {None})


def stages_of_units(
    graph: LayerGraph,
    stages: Units,
    renamings: Sequence[Renaming] = (),
    *,
    keep_unknown: bool = False,
) -> StageLayers:
    """The layers on each stage of a layout.

    Raises UsageError where the layout leaves out a layer of the profile, names a unit that no layer has, or
    has a unit or a stage twice. Raises ExportRefused where a layer has no known unit.
    """
    home: dict[str, int] = {}
    for place, units in enumerate(stages):
        if not units:
            raise UsageError(f"stage {place} of the layout has no layer; a stage needs one")
        for unit in units:
            if unit in home:
                raise UsageError(
                    f"the layout has '{unit}' twice, on stages {home[unit]} and {place}"
                )
            home[unit] = place
    found: list[list[str]] = [[] for _ in stages]
    seen: set[str] = set()
    missing: list[str] = []
    for layer in graph.layers:
        unit = unit_of_layer(layer.name, renamings, keep_unknown=keep_unknown)
        if unit is None:
            found[-1].append(layer.name)
        elif unit in home:
            seen.add(unit)
            found[home[unit]].append(layer.name)
        else:
            missing.append(unit)
    _refuse_difference(missing, [unit for unit in home if unit not in seen])
    return tuple(map(tuple, found))


def language_model(counts: Sequence[int]) -> Units:
    """Stages with so many decoder layers each; the embedding is on the first, norm and head are on the last."""
    stages: list[list[str]] = []
    first = 0
    for count in counts:
        stages.append([f"layers.{first + at}" for at in range(count)])
        first += count
    stages[0].insert(0, EMBEDDING)
    stages[-1] += [NORM, HEAD]
    return tuple(map(tuple, stages))


def without_absent_norm(
    graph: LayerGraph, stages: Units, renamings: Sequence[Renaming] = ()
) -> Units:
    """The stages without the final norm, where no layer of the profile is one."""
    units = {unit_of_layer(layer.name, renamings, keep_unknown=True) for layer in graph.layers}
    if NORM in units:
        return stages
    return tuple(tuple(unit for unit in stage if unit != NORM) for stage in stages)


def _refuse_difference(missing: Iterable[str], unknown: Sequence[str]) -> None:
    """Raise UsageError where layout and profile do not have the same units."""
    left_out = list(dict.fromkeys(missing))
    told: list[str] = []
    if left_out:
        told.append(f"leaves out {counted(len(left_out), 'unit')} of the model: {_some(left_out)}")
    if unknown:
        told.append(f"names {counted(len(unknown), 'unit')} that no layer has: {_some(unknown)}")
    if told:
        raise UsageError(
            f"the layout {' and '.join(told)}; name layers with --map LAYER=UNIT, or mend the layout"
        )


def _some(names: Sequence[str]) -> str:
    """Up to three names, and the number of the others."""
    shown = [f"'{name}'" for name in names[:3]]
    return in_words([*shown, f"{len(names) - 3} more"] if len(names) > 3 else shown)
