"""Notes on layers that the model checkpoints itself: which are recomputed, and which are not."""

from collections.abc import Sequence

from autopart.records.layer_graph import LayerGraph
from autopart.runtime.capture.checkpoints import CheckpointedLayers
from autopart.text import counted

_MOST_NAMES = 3


def notes_on_checkpoints(found: CheckpointedLayers, graph: LayerGraph) -> tuple[str, ...]:
    """Say which checkpoints become the recompute of their layers, and which are dropped."""
    able = {layer.name for layer in graph.layers if layer.recompute is not None}
    kept = [name for name in found.whole if name in able]
    whole = [name for name in found.whole if name not in able]
    notes: list[str] = []
    if kept:
        notes.append(
            f"the model checkpoints {_named(kept)}: solve recomputes them under every named schedule, "
            "unless --recompute, --keep-layer or --schedule auto says otherwise"
        )
    if found.partly:
        notes.append(
            f"the model checkpoints a part of {_named(found.partly)}, which is left out; "
            "--recompute-layer recomputes a whole layer, --recompute auto chooses layers"
        )
    if whole:
        notes.append(
            f"the model checkpoints {_named(whole)}, which is left out: there recomputation saves "
            "nothing or would change a buffer twice; --recompute auto chooses other layers"
        )
    return tuple(notes)


def _named(names: Sequence[str]) -> str:
    more = ", …" if len(names) > _MOST_NAMES else ""
    return f"{counted(len(names), 'layer')} ({', '.join(names[:_MOST_NAMES])}{more})"
