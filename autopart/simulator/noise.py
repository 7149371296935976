"""Noise: how the makespan spreads when actions and sends vary from step to step.

Each action and each send takes its usual time times a random factor. The factors are independent
and log-normal with mean 1, so never negative. Gradient syncs, moves of stash and optimizer steps do
not vary.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from autopart.errors import UsageError
from autopart.records.layer_graph import Layer
from autopart.schedules.actions import Schedule, StageRanks
from autopart.simulator.compiled import Rows, Runner, nothing_before
from autopart.simulator.costs import FloatArray, StageCosts, kind_costs
from autopart.simulator.syncs import SyncCost, add_updates, after_syncs, effects_of
from autopart.simulator.working_order import Step, compile_schedule
from autopart.text import counted

MOST_ACTIONS = 10**9
"""The most actions in all random steps together: about a minute."""
MOST_AT_ONCE = 10**7
"""The most actions in the random steps that run side by side: about 200 MB."""
IQR_OF_NORMAL = 1.349
"""Interquartile range of a normal distribution, in standard deviations."""


class Spread(NamedTuple):
    """Standard deviation over mean, for each time on one stage."""

    forward: float
    backward: float
    input_grad: float
    weight_grad: float
    send: float


class Draws(NamedTuple):
    """How many random steps to draw, and from which seed."""

    number: int
    seed: int


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
    """The same spread for every time, sends included."""
    return (Spread(share, share, share, share, share),) * num_stages


def measured_spreads(stages: Sequence[Sequence[Layer]]) -> tuple[Spread, ...]:
    """The spreads from a profile's interquartile ranges, for stages that consist of its layers.

    Layers vary independently. Sends were not measured, and do not vary.
    """
    return tuple(_measured_spread(layers) for layers in stages)


def _measured_spread(layers: Sequence[Layer]) -> Spread:
    # Variances of independent layers add up.
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
    stages: Sequence[StageCosts[float]],
    syncs: Sequence[SyncCost[float]],
    spreads: Sequence[Spread],
    *,
    action_overhead: float,
    runner: Runner,
    draws: Draws,
) -> FloatArray:
    """Each random step's makespan in seconds, shape (draws,).

    `runner` runs many steps at once (`runner_of`). The same seed gives the same steps. Raises UsageError where so many actions would take minutes.
    """
    actions = sum(map(len, schedule))
    if draws.number * actions > MOST_ACTIONS:
        raise UsageError(
            f"{draws.number} draws are too many for a step of {counted(actions, 'action')}; draw at most "
            f"{MOST_ACTIONS // actions}"
        )
    program = compile_schedule(schedule, ranks)
    pairs = program.actions.pair_kinds
    costs = kind_costs(stages, action_overhead, pairs)
    effects = effects_of(program.actions, syncs, costs.lending)
    rng = np.random.default_rng(draws.seed)
    # One spread for each kind of action, F, B, I and W in turn; one for each kind's send.
    # An overlapped pair varies as its backward does.
    paired = [spreads[backward].backward for _, backward in pairs]
    shares = np.array([share for spread in spreads for share in spread[:4]] + paired + [0.0])
    sends = np.repeat([spread.send for spread in spreads], 4)
    # The random steps run side by side, as partitions do, in blocks that fit into memory.
    block = max(1, MOST_AT_ONCE // actions)
    makespans: list[FloatArray] = []
    for first in range(0, draws.number, block):
        count = min(block, draws.number - first)
        compute = _drawn(rng, costs.compute, shares, count, lambda step: step.row)
        moving = _drawn(rng, costs.moving, sends, count, lambda step: step.kind)
        ends = runner(program, compute, moving, nothing_before(program, count), effects)
        synced = after_syncs(ends.free, syncs, np.maximum, effects, ends.watched)
        rank_end = add_updates(synced, ranks, stages)
        makespans.append(np.maximum.reduce(np.broadcast_arrays(*rank_end)))
    return np.concatenate(makespans)


def _drawn(
    rng: np.random.Generator,
    times: FloatArray,
    shares: FloatArray,
    draws: int,
    row_of: Callable[[Step], int],
) -> Rows:
    """Random seconds for each action, drawn anew at each call; `row_of` finds it in `times`.

    With sigma^2 = log(1 + share^2), the factor exp(sigma z - sigma^2 / 2) has mean 1 and standard
    deviation `share`, for z standard normal.
    """
    width = np.sqrt(np.log1p(shares**2))

    def row(step: Step) -> FloatArray:
        sigma = width[row_of(step)]
        return times[row_of(step)] * np.exp(sigma * rng.standard_normal(draws) - sigma**2 / 2)

    return row


def distribution(makespans: FloatArray) -> Distribution:
    """Summarise the makespans in random steps."""
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
