"""Profiles with tensor variants, made by hand."""

import msgspec

from autopart.records.group_variants import Collective, GroupVariant, LayerCollectives
from autopart.records.layer_graph import Layer, LayerGraph, Recompute
from autopart.records.profile import Profile
from autopart.records.rank_group import Group


def with_degrees(profile: Profile, *degrees: int, whole: int = 64) -> Profile:
    """The profile with a variant for each degree, with sequence parallelism and without.

    Each layer has two all-reduces of `whole` bytes forward and two backward, half of them beneath W. Under sequence
    parallelism these are gathers and scatters, and values are split.
    """
    variants = tuple(
        GroupVariant(
            group=Group(tensor=degree, sequence_parallel=split),
            graph=shard_of(profile.graph, degree, split=split),
            collectives=tuple(
                LayerCollectives(layer=layer.name, collectives=_collectives(whole, split=split))
                for layer in profile.graph.layers
            ),
        )
        for degree in degrees
        for split in (False, True)
    )
    return msgspec.structs.replace(profile, variants=variants)


def shard_of(graph: LayerGraph, degree: int, *, split: bool) -> LayerGraph:
    """The graph with a t-th of every layer; values are split only under sequence parallelism."""
    values = tuple(
        msgspec.structs.replace(v, bytes=-(-v.bytes // degree)) if split else v
        for v in graph.values
    )
    tied = tuple(
        msgspec.structs.replace(
            one,
            param_bytes=-(-one.param_bytes // degree),
            grad_bytes=-(-one.grad_bytes // degree),
            num_trainable=-(-one.num_trainable // degree),
        )
        for one in graph.tied
    )
    layers = tuple(_shard(layer, degree) for layer in graph.layers)
    return msgspec.structs.replace(graph, layers=layers, values=values, tied=tied)


def _shard(layer: Layer, degree: int) -> Layer:
    def part(recompute: Recompute | None) -> Recompute | None:
        if recompute is None:
            return None
        return Recompute(
            extra_time=recompute.extra_time / degree,
            stash_bytes=-(-recompute.stash_bytes // degree),
        )

    return msgspec.structs.replace(
        layer,
        forward_time=layer.forward_time / degree,
        input_grad_time=layer.input_grad_time / degree,
        weight_grad_time=layer.weight_grad_time / degree,
        update_time=layer.update_time / degree,
        param_bytes=-(-layer.param_bytes // degree),
        grad_bytes=-(-layer.grad_bytes // degree),
        num_trainable=-(-layer.num_trainable // degree),
        stash_bytes=-(-layer.stash_bytes // degree),
        workspace_bytes=-(-layer.workspace_bytes // degree),
        recompute=part(layer.recompute),
        selective=part(layer.selective),
    )


def _collectives(whole: int, *, split: bool) -> tuple[Collective, ...]:
    if not split:
        there = Collective(kind="all_reduce", bytes=whole, phase="forward", recomputed=True)
        back = Collective(kind="all_reduce", bytes=whole, phase="input_grad")
        beneath = msgspec.structs.replace(back, beneath="weight_grad")
        return there, there, back, beneath
    made: list[Collective] = []
    for kind in ("all_gather", "reduce_scatter"):
        made += 2 * [Collective(kind=kind, bytes=whole, phase="forward", recomputed=True)]
        made += [Collective(kind=kind, bytes=whole, phase="input_grad")]
        made += [Collective(kind=kind, bytes=whole, phase="input_grad", beneath="weight_grad")]
    return (*made, Collective(kind="all_reduce", bytes=8, phase="step"))
