"""Captures compared with each other: a forward that takes a changing path gives unequal graphs."""

from autopart.errors import ModelError
from autopart.runtime.capture.capture import capture_model
from autopart.runtime.models.model import Batch, TrainingModel

_MORE_CAPTURES = 3
"""Captures beyond the first. Three leave a path of two equally likely ones unseen in 1/8."""


def check_repeatable(model: TrainingModel, batch: Batch) -> None:
    """Raise ModelError where captures of one model differ from each other."""
    captured = capture_model(model, batch)
    names = [layer.name for layer in captured.layers]
    for _ in range(_MORE_CAPTURES):
        again = capture_model(model, batch)
        if again.graph_hash != captured.graph_hash:
            others = [layer.name for layer in again.layers]
            apart = [n for n in (*names, *others) if (n in names) != (n in others)]
            where = f"layer '{apart[0]}' is in one of them only" if apart else "operations differ"
            raise ModelError(
                f"{model.name}: two captures of the forward differ ({where}), so it branches at "
                "random; a pipeline has fixed stages: make the path fixed, or multiply by a torch "
                "mask instead"
            )
