"""A plan's stages as the first GPU of each rank group runs them alone, without the group's collectives.

So a measurement on one device, where collectives take no time, has a prediction beside it.
"""

from collections.abc import Iterable, Mapping

import msgspec

from autopart.cost.groups_as_ranks import HIDING, CollectiveTimes, collective_times
from autopart.records.group_variants import LayerCollectives
from autopart.records.plan import Plan, Stage
from autopart.records.prediction import StagePrediction, StateActions, StateMessages
from autopart.records.rank_group import Group

_NONE = CollectiveTimes(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def without_collectives(
    plan: Plan, collectives: Iterable[LayerCollectives]
) -> tuple[StagePrediction, ...]:
    """The plan's predicted stages without the seconds of these `collectives`, and of sharded state. Bytes stay.

    A collective that hides beneath W adds no seconds to a whole backward. A plan does not say which ones hide.
    Its `split_time` is the sum of their seconds and of those by which a split makes layers longer. So all
    collectives beneath W that fit into it count as hidden. The error is at most the layers' own split time.
    """
    if not isinstance(plan.group, Group):
        return plan.prediction.stages
    own = collective_times(collectives, plan.cluster, plan.group)
    hides = plan.training.sync in HIDING
    return tuple(
        _stage_without(predicted, stage, own, hides=hides)
        for predicted, stage in zip(plan.prediction.stages, plan.stages, strict=True)
    )


def _stage_without(
    predicted: StagePrediction, stage: Stage, own: Mapping[str, CollectiveTimes], *, hides: bool
) -> StagePrediction:
    those = [own[name] for name in stage.layers if name in own]
    total = CollectiveTimes(*map(sum, zip(_NONE, *those, strict=True)))
    run_again = (*stage.recompute, *stage.selective)
    again = sum(own[name].recomputed for name in run_again if name in own)
    hidden = min(total.beneath, predicted.split_time) if hides else 0.0
    backward = total.input_grad + total.beneath - hidden + total.weight_grad + again
    # A plan says itself which seconds of gathers and sums of sharded state show.
    state = predicted.state if isinstance(predicted.state, StateActions) else StateActions()
    forward = total.forward + _exposed(state.forward)
    weights, whole = _exposed(state.weight_grad), _exposed(state.backward)
    in_split = _exposed(state.input_grad) + weights - whole
    backward += whole

    def less(had: float, spent: float) -> float:
        return max(0.0, had - spent)  # Rounding may leave less than nothing.

    return msgspec.structs.replace(
        predicted,
        forward_time=less(predicted.forward_time, forward),
        backward_time=less(predicted.backward_time, backward),
        weight_grad_time=less(predicted.weight_grad_time, total.weight_grad + weights),
        split_time=less(predicted.split_time, hidden + in_split),
        busy_time=less(predicted.busy_time, forward + backward),
        update_time=less(predicted.update_time, total.step + _exposed(state.step)),
        state=msgspec.UNSET,
    )


def _exposed(own: StateMessages) -> float:
    return own.exposed_gather_time + own.exposed_reduction_time
