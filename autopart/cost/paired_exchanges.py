"""All-to-alls of experts beneath the compute of the other microbatch, where ranks run overlapped pairs.

Megatron-Core (`overlap_moe_expert_parallel_comm`, model_chunk_schedule_plan.py) runs the forward of a layer beside its backward
for another microbatch on two streams. Each stream has four parts in this order, and each part waits for the one that it needs:

    messages   combine of B    dispatch of F    dispatch of B    combine of F
    compute    F to dispatch   experts of B     experts of F     B behind dispatch

Symbols   f, b     seconds of the layer's F and B without these messages;  x, y   the part of them that experts take
          c, d     seconds of the all-to-alls of F and of B, half of them before the experts and half behind

    the pair takes   max(f - x, d / 2) + max(y, c / 2) + max(x, d / 2) + max(b - y, c / 2)

*Proof.* A part of either stream needs only parts of the columns before it. Each of both parts in a column needs the other stream's part
of the column before. So both parts of a column start when both parts of the one before have ended. ∎ It is at least F alone, at least B
alone, and at most both in turn, as each column has one part of F and one of B.

Compute of both runs on one stream, so a layer without experts takes both in turn. A layer begins when the one before has ended.
Megatron does not wait there, so the sum over layers is an upper figure.
"""

from collections.abc import Mapping

import msgspec

from autopart.cost.uneven_experts import ExpertsPart, experts_parts
from autopart.records.expert_load import AssumedLoad
from autopart.records.group_variants import GroupVariant
from autopart.records.layer_graph import Layer
from autopart.records.training import Training

OVERLAPPING = ("megatron",)
"""The values of `--sync` whose frameworks run all-to-alls of experts beside the other microbatch."""


def parts_beneath(
    variant: GroupVariant | None, assumed: AssumedLoad | msgspec.UnsetType, training: Training
) -> Mapping[str, ExpertsPart] | None:
    """For each layer with experts their part, where pairs overlap the all-to-alls; None where no pair does.

    `variant` has balanced load.
    """
    if variant is None or variant.group.expert == 1 or training.sync not in OVERLAPPING:
        return None
    return experts_parts(variant, assumed)


def with_overlapped_pair(layer: Layer, part: ExpertsPart | None, exchanges: ExpertsPart) -> Layer:
    """The layer with the seconds of such a pair. Its F and B have the all-to-alls `exchanges`; without pair time it stays so."""
    if layer.pair_time is msgspec.UNSET:
        return layer
    backward = layer.input_grad_time + layer.weight_grad_time
    if part is None:
        return msgspec.structs.replace(layer, pair_time=layer.forward_time + backward)
    c, d = exchanges
    f, b = layer.forward_time - c, backward - d
    # Measured parts scatter: experts take no more than the layer.
    x, y = min(part.forward, f), min(part.backward, b)
    columns = ((f - x, d / 2), (y, c / 2), (x, d / 2), (b - y, c / 2))
    return msgspec.structs.replace(layer, pair_time=sum(max(own) for own in columns))
