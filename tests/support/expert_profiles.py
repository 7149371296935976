"""Profiles with an expert degree of 2, made by hand."""

from collections.abc import Sequence

import msgspec

from autopart.records.expert_load import LayerLoad
from autopart.records.group_variants import (
    Collective,
    GroupVariant,
    LayerCollectives,
    LoadedLayers,
)
from autopart.records.layer_graph import Layer, Recompute
from autopart.records.profile import Profile
from autopart.records.rank_group import Group
from tests.support.problems import chain_graph, layer, profile

SENT = Collective(kind="all_to_all", bytes=1000, phase="forward", among="expert", recomputed=True)
BACK = msgspec.structs.replace(SENT, phase="input_grad", recomputed=False)
COUNTS = Collective(kind="all_gather", bytes=64, phase="forward", among="expert")
SUM = Collective(kind="all_reduce", bytes=500, phase="step", among="expert")

EXPERTS = layer(
    "experts",
    forward_time=2.0,
    input_grad_time=3.0,
    weight_grad_time=1.0,
    param_bytes=80,
    grad_bytes=80,
    num_trainable=20,
    stash_bytes=1000,
    workspace_bytes=200,
    backward_workspace_bytes=300,
    recompute=Recompute(extra_time=1.5, stash_bytes=100),
)
LOADED = msgspec.structs.replace(
    EXPERTS,
    forward_time=3.0,
    input_grad_time=4.5,
    weight_grad_time=1.25,
    stash_bytes=1600,
    workspace_bytes=260,
    backward_workspace_bytes=401,
    recompute=Recompute(extra_time=2.5, stash_bytes=100),
)
"""The same with twice the entries: the experts' part is 1 s of F, 1.5 s of I, 0.25 s of W and 600 bytes of stash."""


def with_experts(
    loaded: Sequence[Layer] = (LOADED,), loads: Sequence[LayerLoad] = (), sent: int = 2
) -> Profile:
    """A profile of two layers, of which the second has experts and sends `sent` messages each way."""
    graph = chain_graph(layer("dense", stash_bytes=500), EXPERTS)
    own = (COUNTS, *[SENT] * sent, *[BACK] * sent, SUM)
    variant = GroupVariant(
        group=Group(expert=2),
        graph=graph,
        collectives=(LayerCollectives(layer="experts", collectives=own),),
        loaded=LoadedLayers(imbalance=2, layers=tuple(loaded)) if loaded else msgspec.UNSET,
        loads=tuple(loads) or msgspec.UNSET,
    )
    return msgspec.structs.replace(profile(graph), variants=(variant,), microbatch_size=4)
