"""Lower bounds where ranks run overlapped pairs: each backward is shorter by all that a pair saves.

Symbols, for stage s: F_s and B_s the seconds of its forward and its whole backward, v_s its saving

    F of s beside B of t takes    F_s + B_t - min(v_s, v_t)

Take any step with pairs. In place of each pair, run F_s and then a backward of B_t - v_t seconds.
Both fit into the pair's time, as min(v_s, v_t) <= v_t. Each starts no earlier than the pair, whose
inputs are all there, and ends no later than the pair does. So it is a step without pairs for the
same stages with B_t - v_t in place of B_t, and no longer. Each lower bound for that problem holds.

A saving adds up over layers, and is at most the layer's backward. W loses it first, and I the rest:
both halves of a split backward are then no longer than they are.
"""

import dataclasses
import functools

import msgspec
import numpy as np

from autopart.cost.cuts import Cuts
from autopart.records.layer_graph import Layer, has_pair_times, pair_saving
from autopart.records.problem import CUSTOM, PAIRED, Problem

MAY_PAIR = (*PAIRED, CUSTOM)
"""The schedules whose orders may have overlapped pairs."""


def without_savings_if_paired(problem: Problem) -> Problem:
    """The problem for bounds that hold for all its schedules."""
    paired = not set(problem.demands.schedules).isdisjoint(MAY_PAIR)
    return without_savings(problem) if paired and has_pair_times(problem.graph) else problem


@functools.lru_cache(maxsize=8)
def without_savings(problem: Problem) -> Problem:
    """The problem with each layer's backward shorter by what a pair saves."""
    layers = tuple(map(_shorter, problem.graph.layers))
    return msgspec.structs.replace(
        problem, graph=msgspec.structs.replace(problem.graph, layers=layers)
    )


def _shorter(layer: Layer) -> Layer:
    saved = pair_saving(layer)
    of_weights = min(saved, layer.weight_grad_time)
    return msgspec.structs.replace(
        layer,
        input_grad_time=max(0.0, layer.input_grad_time - (saved - of_weights)),
        weight_grad_time=layer.weight_grad_time - of_weights,
        pair_time=msgspec.UNSET,
    )


@functools.lru_cache(maxsize=8)
def cuts_without_savings(cuts: Cuts) -> Cuts:
    """The totals between cuts with each backward shorter by what a pair saves."""
    totals, saved = cuts.totals, cuts.totals.pair_saving
    return dataclasses.replace(
        cuts,
        totals=totals._replace(
            backward_time=np.maximum(totals.backward_time - saved, 0.0),
            weight_grad_time=np.maximum(totals.weight_grad_time - saved, 0.0),
            pair_saving=0.0 * saved,
        ),
    )
