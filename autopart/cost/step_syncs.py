"""The gradient syncs of a step: of each stage with replicas, and of each tied parameter."""

from collections.abc import Sequence
from typing import Any

from autopart.cost.stage_syncs import StageSync, stage_sync
from autopart.cost.stage_totals import StageTotals
from autopart.cost.sync_rules import RULES, Rule
from autopart.cost.tied_syncs import all_ranks, tied_price, without_ties
from autopart.records.layer_graph import TiedParameter
from autopart.records.layouts import Layout
from autopart.records.problem import Problem
from autopart.units import Q


def sync_times(
    problem: Problem,
    layout: Layout,
    all_totals: Sequence[StageTotals[Q]],
    holders: Sequence[tuple[int, ...]],
) -> tuple[StageSync[Q], ...]:
    """A step's gradient syncs; `holders` names the stages with a copy, for each tied parameter.

    They are in the order in which they follow their ranks' actions.
    """
    rule = RULES[problem.training.sync]
    # Step 1: each tied parameter that several stages have.
    ties = [
        _tied_sync(problem, layout, tied, stages)
        for tied, stages in zip(problem.graph.tied, holders, strict=True)
    ]
    # Step 2: each stage over its replicas.
    syncs: list[StageSync[Any]] = []
    for stage, (ranks, totals) in enumerate(zip(layout.stage_ranks, all_totals, strict=True)):
        if len(ranks) == 1:
            continue
        left_out = [
            _left_out(rule, stage, stages, tie) for stages, tie in zip(holders, ties, strict=True)
        ]
        syncs.append(stage_sync(problem, without_ties(problem, totals, left_out), stage, ranks))
    # Step 3: their order.
    tied = [tie for tie in ties if tie is not None]
    return (*tied, *syncs) if rule.ties_first else (*syncs, *tied)


def _tied_sync(
    problem: Problem, layout: Layout, tied: TiedParameter, stages: tuple[int, ...]
) -> StageSync[Any] | None:
    """The sync of one tied parameter; None where there is nothing to sum besides the stages' own syncs."""
    training = problem.training
    holders = [layout.stage_ranks[s] for s in stages]
    ranks = all_ranks(holders)
    if len(stages) < 2 or len(ranks) < 2:
        return None
    rule = RULES[training.sync]
    if rule.ties_once and not rule.sums_early and set(ranks) == set(holders[0]):
        return None  # The same ranks have it once, and sum it with their first stage.
    seconds = tied_price(problem.cluster, holders, training).seconds(tied, training)
    return StageSync(tied.name, ranks, seconds) if seconds > 0.0 else None


def _left_out(rule: Rule, stage: int, stages: tuple[int, ...], tie: StageSync[Any] | None) -> bool:
    """Whether a stage's own sync leaves a tied parameter out."""
    if not rule.ties_once or len(stages) < 2 or stage not in stages:
        return False
    return tie is not None or stage != stages[0]
