"""Seconds of the messages of sharded state, by kind of action, and the part that compute does not hide.

Symbols   x_F, x_I, x_W   seconds of a layer's gathers in F, in a backward, and of its sums
          C               its seconds of compute in one kind of action, with those of a forward that runs again
          T               its seconds of that action in the cost model (autopart/cost/groups_as_ranks.py)

    exposed = T - C         in a whole backward   max(0, x_I - C) of them for gathers, the others for sums

A gather comes first on the link, as the next layer's backward cannot start without it. So a stage's compute and its
exposed seconds add up to its action, exactly as the simulator has it. Where sends keep ranks busy, C hides nothing.
"""

from collections.abc import Iterable
from typing import NamedTuple

from autopart.cost.contention import contended
from autopart.cost.groups_as_ranks import CollectiveTimes, beneath_compute, collective_times
from autopart.records.cluster import Cluster, slowest_speed
from autopart.records.group_variants import GroupVariant
from autopart.records.layer_graph import Layer, Recompute


class Messages(NamedTuple):
    """Gathers and sums of one kind of action, in seconds."""

    gather_time: float = 0.0
    reduction_time: float = 0.0
    exposed_gather_time: float = 0.0
    exposed_reduction_time: float = 0.0


class ActionMessages(NamedTuple):
    """Gathers and sums of layers for one microbatch, and those once per step."""

    forward: Messages = Messages()
    backward: Messages = Messages()
    input_grad: Messages = Messages()
    weight_grad: Messages = Messages()
    step: Messages = Messages()


class StateMessageTimes:
    """The messages of each layer of a sharded variant, on a cluster of single GPUs."""

    def __init__(self, variant: GroupVariant, cluster: Cluster) -> None:
        self._overlaps = cluster.sends_overlap
        # Seconds here are those of the profile's device, as layer times are.
        self._speed = slowest_speed(cluster, ())
        self._layers = contended(variant.graph, cluster).layers
        self._own = collective_times(variant.collectives, cluster, variant.group, scale=self._speed)

    def of_stage(
        self, members: Iterable[int], recomputed: Iterable[int], selective: Iterable[int]
    ) -> ActionMessages:
        """The sums over some layers, of which some run their forward again, whole or selectively."""
        again = dict.fromkeys(recomputed, "recompute") | dict.fromkeys(selective, "selective")
        each = [self._of_layer(at, again.get(at)) for at in members]
        return ActionMessages(
            *(
                Messages(*(sum(column) / self._speed for column in zip(*kind, strict=True)))
                for kind in zip(*each, strict=True)
            )
        )

    def _of_layer(self, at: int, policy: str | None) -> ActionMessages:
        plain = self._layers[at]
        own = self._own.get(plain.name)
        if own is None:
            return ActionMessages()
        again: Recompute | None = getattr(plain, policy) if policy else None
        with_messages = beneath_compute(plain, own, overlaps=self._overlaps)
        again_with: Recompute | None = getattr(with_messages, policy) if policy else None
        more = again_with.extra_time - again.extra_time if again and again_with else 0.0
        compute = plain.input_grad_time + plain.weight_grad_time
        compute += again.extra_time if again else 0.0
        return _exposed(plain, with_messages, own, more, compute if self._overlaps else 0.0)


def _exposed(
    plain: Layer, modelled: Layer, own: CollectiveTimes, more: float, hiding: float
) -> ActionMessages:
    """The messages of one layer.

    Recomputing adds `more` seconds to `modelled` than to `plain`. `hiding` seconds of compute may hide a backward's messages.
    """
    forward = max(0.0, modelled.forward_time - plain.forward_time)
    whole = _seconds(modelled, "input_grad_time", "weight_grad_time")
    whole += more - _seconds(plain, "input_grad_time", "weight_grad_time")
    in_i = _seconds(modelled, "input_grad_time", "split_time")
    in_i += more - _seconds(plain, "input_grad_time", "split_time")
    in_w = max(0.0, modelled.weight_grad_time - plain.weight_grad_time)
    gathers = min(max(0.0, whole), max(0.0, own.gather_backward - hiding))
    return ActionMessages(
        forward=Messages(own.gather_forward, 0.0, forward),
        backward=Messages(own.gather_backward, own.scatter, gathers, max(0.0, whole - gathers)),
        input_grad=Messages(own.gather_backward, 0.0, max(0.0, in_i)),
        weight_grad=Messages(0.0, own.scatter, 0.0, in_w),
        # Nothing hides messages beneath the update.
        step=Messages(own.step_gather, own.step_scatter, own.step_gather, own.step_scatter),
    )


def _seconds(layer: Layer, *fields: str) -> float:
    return sum(getattr(layer, field) for field in fields)
