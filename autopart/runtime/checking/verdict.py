"""The verdict of a check: its result, or an error that names the cause and the differences."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from autopart.errors import RunError
from autopart.records.run_result import CheckResult
from autopart.runtime.checking.check import FLOOR_EPSILONS, CheckRecord, Deviation
from autopart.runtime.checking.gradient_kinds import told
from autopart.runtime.checking.own_rounding import allow_own_rounding


def outcome(
    check: CheckRecord, losses: Sequence[float], dropouts: int, notes: Sequence[str]
) -> CheckResult:
    """The result of the check; raises RunError if it fails.

    The error names the cause where it is known, and the largest differences.
    """
    _check_finite(check, losses)
    loss_deviations = _compare_losses(check, losses)
    wrong = _wrong(check, loss_deviations)
    if wrong:
        notes = [*notes, *allow_own_rounding(check)]
        wrong = _wrong(check, loss_deviations)
    if wrong:
        raise RunError(f"{_cause(check)}{_verdict(check, wrong)}")
    notes = [*notes, *_compare_kinds(check)]
    gradient, parameter = _worst(check.gradients), _worst(check.parameters)
    return CheckResult(
        tolerance=check.tolerance,
        floor=check.floor,
        losses=_worst(loss_deviations).difference,
        gradients=gradient.difference,
        worst_gradient=gradient.name,
        first_update=_worst(check.first_update).difference if check.first_update else None,
        parameters=parameter.difference,
        worst_parameter=parameter.name,
        num_parameters=len({found.name for found in check.parameters}),
        num_buffers=len({found.name for found in check.buffers}),
        dropouts=dropouts,
        notes=tuple(notes),
    )


def _wrong(check: CheckRecord, losses: list[Deviation]) -> dict[str, list[Deviation]]:
    """The deviations beyond what is allowed, by kind."""
    groups = {
        "": losses,
        "the gradient of ": check.gradients,
        f"after the first {check.step} parameter ": check.first_update,
        f"after the last {check.step} parameter ": check.parameters,
        "buffer ": check.buffers,
    }
    return {kind: bad for kind, found in groups.items() if (bad := _beyond(found))}


def _check_finite(check: CheckRecord, losses: Sequence[float]) -> None:
    """Raise RunError where a loss of the plain model is NaN or infinite: it equals nothing."""
    for step, (mine, plain) in enumerate(zip(losses, check.reference.losses, strict=True)):
        if not math.isfinite(plain):
            raise RunError(
                f"the plain model's own loss of {check.step} {step + 1} is {plain} (the pipeline's "
                f"{mine}), so nothing can be compared; check data, --lr and start values"
            )


def _compare_kinds(check: CheckRecord) -> list[str]:
    """A note where zeros stand for no gradient under SGD; none where both models have the same.

    Raises RunError where the optimizer moves a parameter in one of both models only.
    """
    found = check.unequal_kinds
    if not found:
        return []
    moving = [one for one in found if one.counts]
    if moving or check.optimizer != "sgd":
        raise RunError(
            f"the pipeline differs from the plain model: {told(moving or found)}; {check.optimizer} moves a "
            "parameter with a gradient only"
        )
    return [f"{told(found)}: equal under sgd, not with momentum or weight decay"]


def _compare_losses(check: CheckRecord, losses: Sequence[float]) -> list[Deviation]:
    plain, found = check.reference.losses, list[Deviation]()
    sharp = max(check.tolerance, FLOOR_EPSILONS * torch.finfo(check.reference.loss_dtype).eps)
    for step, (mine, theirs) in enumerate(zip(losses, plain, strict=True)):
        scale = abs(theirs) or 1.0
        moved = max(abs(loss - plain[0]) for loss in plain[: step + 1])
        allowed = sharp + check.drift(step + 1) * moved / scale
        apart = abs(mine - theirs) / scale
        difference = apart if math.isfinite(apart) else math.inf
        which = f"the loss of {check.step} {step + 1}"
        found.append(Deviation(which, 0, difference, allowed))
    return found


def _beyond(found: Sequence[Deviation]) -> list[Deviation]:
    return [one for one in found if one.difference > one.allowed]


def _worst(found: Sequence[Deviation]) -> Deviation:
    return max(found, key=lambda one: one.difference)


def _cause(check: CheckRecord) -> str:
    """Why the models cannot be compared, for the start of an error; empty if nothing is known."""
    plain = Counter(check.reference.draws)
    apart = sorted(n for n in plain | check.draws if plain[n] != check.draws[n])
    if apart:
        told = ", ".join(f"{n} {check.draws[n]} times in place of {plain[n]}" for n in apart)
        return f"the pipeline draws other random numbers than the plain model: {told}; so "
    return ""


def _verdict(check: CheckRecord, wrong: Mapping[str, Sequence[Deviation]]) -> str:
    parts: list[str] = []
    for kind, found in wrong.items():
        one = _worst(found)
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        where = f" on rank {one.rank}" if kind else ""
        parts.append(
            f"{kind}{one.name}{where} by {one.difference:.2g} ({one.allowed:.2g} allowed){more}"
        )
    same = f" with the same {check.weights} weights" if check.weights else ""
    return f"the pipeline differs from the plain model{same}: {'; '.join(parts)}"
