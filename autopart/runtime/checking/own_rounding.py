"""The plain model's own rounding: its gradients in float32 beside those in float64.

Where terms cancel, float32 leaves fewer digits than the tolerance asks for, in the plain model as in
the pipeline. Both then differ from the exact gradient by about as much. So a gradient may differ from
the plain model's by a few times the plain model's own distance from float64. A wrong gradient differs
by far more: its error does not shrink with the precision.
"""

from collections.abc import Callable, Sequence

import torch
from torch.utils import _pytree as pytree

from autopart.runtime.checking.check import CheckRecord, Deviation
from autopart.runtime.checking.plain_optimizer import PlainOptimizer
from autopart.runtime.checking.reference_run import Tensors, run_reference
from autopart.runtime.models.model import Batch, build_training_model
from autopart.runtime.models.precision import cast_to, double
from autopart.zoo.source import ModelSource

TIMES = 4.0
"""Largest difference between both models, in distances of the plain model from float64."""


def gradients_in_float64(
    source: ModelSource,
    seed: int,
    batches: Callable[[int], Batch],
    count: int,
    device: str,
    clip_norm: float | None,
) -> Tensors:
    """Return the gradients of the first step in float64, from the same weights and batches.

    `batches(m)` is microbatch m of `count`. `clip_norm` is the largest norm of all gradients together, if any. Empty
    where the model does not run in float64.
    """

    def wide(leaf: object) -> object:
        return cast_to(leaf, torch.float64) if isinstance(leaf, torch.Tensor) else leaf

    try:
        model = build_training_model(source, dtype="float64", device=device, seed=seed)
        return run_reference(
            model,
            lambda _, m: pytree.tree_map(wide, batches(m)),
            steps=1,
            num_microbatches=count,
            optimizer=lambda trained: PlainOptimizer(
                "sgd", trained, 0.0, has_masters=False, clip_norm=clip_norm
            ),
            note=lambda _: None,
        ).gradients
    except Exception:  # user code in another dtype may raise anything
        return {}


def allow_own_rounding(check: CheckRecord) -> list[str]:
    """Raise what is allowed for gradients, and for the first update, by the plain model's rounding.

    Returns a note for the user, none where nothing is raised.
    """
    if check.in_float64 is None or check.reference.draws:
        return []
    exact, plain = check.in_float64(), check.reference.gradients
    own = {
        name: float((double(plain[name]) - double(gradient)).abs().max())
        for name, gradient in exact.items()
        if name in plain and gradient.numel()
    }
    check.gradients = _raised(check.gradients, own, plain)
    moved = {name: check.reach(1) * apart for name, apart in own.items()}
    check.first_update = _raised(check.first_update, moved, check.reference.first)
    raised = [one for one in check.gradients if one.allowed > check.tolerance]
    if not raised:
        return []
    worst = max(raised, key=lambda one: one.allowed)
    return [
        f"float32 rounds the plain model's own gradients by more than the tolerance, "
        f"'{worst.name}' by {worst.allowed / TIMES:.1g}; {TIMES:g} times as much was allowed there"
    ]


def _raised(found: Sequence[Deviation], apart: dict[str, float], plain: Tensors) -> list[Deviation]:
    raised: list[Deviation] = []
    for one in found:
        scale = float(double(plain[one.name]).abs().max()) if one.name in apart else 0.0
        share = TIMES * apart[one.name] / scale if scale > 0.0 else 0.0
        raised.append(one._replace(allowed=max(one.allowed, share)))
    return raised
