"""Profiles whose times are not measured, for tests that look at bytes alone."""

import msgspec

from autopart.records.layer_graph import LayerGraph
from autopart.records.profile import Profile

_SECONDS = 0.001


def with_equal_times(profile: Profile) -> Profile:
    """The profile with equal seconds for all layers, so that the cuts of its plans are the same in each run."""
    variants = (
        msgspec.structs.replace(variant, graph=_equal(variant.graph))
        for variant in profile.variants
    )
    return msgspec.structs.replace(profile, graph=_equal(profile.graph), variants=tuple(variants))


def _equal(graph: LayerGraph) -> LayerGraph:
    layers = (
        msgspec.structs.replace(
            layer,
            forward_time=_SECONDS,
            input_grad_time=_SECONDS,
            weight_grad_time=_SECONDS,
        )
        for layer in graph.layers
    )
    return msgspec.structs.replace(graph, layers=tuple(layers))
