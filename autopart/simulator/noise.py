"""How the makespan spreads when actions and sends do not take the same time every time.

Each action and each send takes its time times a factor of its own, log-normal with mean 1: independent
from one to the next, never negative. Gradient syncs and optimizer steps take their time.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.graph import Layer
from autopart.schedule import Schedule, StageRanks
from autopart.simulator.actions import Array
from autopart.simulator.costs import StageCosts, kind_costs
from autopart.simulator.program import (
    Rows,
    Step,
    compile_schedule,
    run_steps,
    run_steps_in_turn,
)
from autopart.simulator.syncs import SyncCost, add_updates, after_syncs

IQR_OF_NORMAL = 1.349
"""Interquartile range of a normal distribution in standard deviations."""


class Spread(NamedTuple):
    """Standard deviations over means, of one stage."""

    forward: float
    backward: float
    input_grad: float
    weight_grad: float
    send: float


class Distribution(NamedTuple):
    """Makespans under noise, in seconds."""

    mean: float
    deviation: float
    smallest: float
    percentile_5: float
    median: float
    percentile_95: float
    largest: float


def even_spread(share: float, num_stages: int) -> tuple[Spread, ...]:
    """The same share of every time, sends included."""
    return (Spread(share, share, share, share, share),) * num_stages


def measured_spreads(stages: Sequence[Sequence[Layer]]) -> tuple[Spread, ...]:
    """What a profile's interquartile ranges say of stages made of its layers, which vary
    independently; sends were not measured, and do not vary."""
    return tuple(_measured_spread(layers) for layers in stages)


def _measured_spread(layers: Sequence[Layer]) -> Spread:
    def share(*parts: tuple[float, float]) -> float:
        mean = sum(time for time, _ in parts)
        deviation = math.hypot(*(spread for _, spread in parts)) / IQR_OF_NORMAL
        return deviation / mean if mean > 0 else 0.0

    forward = [(layer.forward_time, layer.forward_spread) for layer in layers]
    inputs = [(layer.input_grad_time, layer.input_grad_spread) for layer in layers]
    weights = [(layer.weight_grad_time, layer.weight_grad_spread) for layer in layers]
    return Spread(share(*forward), share(*inputs, *weights), share(*inputs), share(*weights), 0.0)


def noisy_makespans(
    schedule: Schedule,
    ranks: StageRanks,
    stages: Sequence[StageCosts],
    syncs: Sequence[SyncCost],
    spreads: Sequence[Spread],
    *,
    action_overhead: float,
    sends_overlap: bool,
    draws: int,
    seed: int,
) -> Array:
    """The makespan of each of `draws` steps, in seconds; the same seed draws the same steps."""
    program = compile_schedule(schedule, ranks)
    costs = kind_costs(stages, action_overhead)
    rng = np.random.default_rng(seed)
    shares = np.array([spread[:4] for spread in spreads]).ravel()
    sends = np.repeat([spread.send for spread in spreads], 4)
    runner = run_steps if sends_overlap else run_steps_in_turn
    compute = _drawn(rng, costs.compute, shares, draws)
    free = runner(program, compute, _drawn(rng, costs.moving, sends, draws), draws)
    rank_end = add_updates(after_syncs(free, syncs, np.maximum), ranks, stages)
    return np.maximum.reduce(np.broadcast_arrays(*rank_end))


def _drawn(rng: np.random.Generator, times: Array, shares: Array, draws: int) -> Rows:
    """The times of a step, drawn anew for each."""
    width = np.sqrt(np.log1p(shares**2))

    def row(step: Step) -> Array:
        sigma = width[step.kind]
        return times[step.kind] * np.exp(sigma * rng.standard_normal(draws) - sigma**2 / 2)

    return row


def distribution(makespans: Array) -> Distribution:
    """The figures of drawn makespans."""
    low, middle, high = np.percentile(makespans, [5, 50, 95]).tolist()
    return Distribution(
        mean=float(makespans.mean()),
        deviation=float(makespans.std()),
        smallest=float(makespans.min()),
        percentile_5=low,
        median=middle,
        percentile_95=high,
        largest=float(makespans.max()),
    )
