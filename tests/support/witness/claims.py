"""The planner's claims about one case, held against the exhaustive optimizer."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from autopart.certificate.verify import verify
from autopart.errors import AutopartError, InfeasibleError, NoPlanFound
from autopart.records.layer_graph import positions
from autopart.records.plan import Plan, policy_of_layers, stage_ranks
from autopart.records.plan_degrees import (
    gpus_of_ranks,
    has_several_degrees,
    rank_sizes,
    stage_groups,
)
from autopart.records.problem import CLASSIC, CUSTOM, SCHEDULES, Problem
from autopart.records.rank_group import Group, group_size
from autopart.search.planner import solve
from tests.support.witness.cases import Case, keywords
from tests.support.witness.every_order import are_all_tried, optimum_of_orders
from tests.support.witness.optimum import Found, grid, low_memory, optimum, value_of
from tests.support.witness.placements import StageSlots, gpus_of, place_on
from tests.support.witness.pricing import Price, Pricer, Setting
from tests.support.witness.stage_degrees import DegreesPricer, optimum_of_degrees

TIME_LIMIT = 20.0
"""Seconds that a solve has at first."""
MORE = 10
"""A solve without a plan in time runs again with so many times the limit, before its claim counts as broken."""

SAME = 1e-9
"""Share by which two sums in different order may differ."""


class Verdict(NamedTuple):
    """What one case showed."""

    broken: tuple[str, ...]
    """The claims that do not hold, in words."""
    best: Found | None
    plan: Plan | None
    refused: bool
    """Whether `solve` refused the demands themselves."""


def judge(case: Case, *, any_order: bool = False) -> Verdict:
    """Solve, verify, and compare with everything that exists.

    With `any_order` the second bound is compared with all named schedules.
    """
    whole = CUSTOM in case.problems[0].demands.schedules
    found = [optimum_of_orders(one) if whole else optimum(one) for one in case.searched]
    per_stage = case.kind == "tensor degrees per stage"
    if per_stage:
        found += [optimum_of_degrees(own, split=split) for split, own in _degree_sets(case)]
    best = min((one for one in found if one), key=lambda one: one.value, default=None)
    several = len(case.profiles) > 1
    tensor = "per-stage" if per_stage else "auto" if case.variants else 1
    words = keywords(case.problems[0], several=several, tensor=tensor) | (case.words or {})
    try:
        plan = _solved(case, words, again=not whole)
    except NoPlanFound as error:
        # Bounds over every order know too little to say that there is no plan.
        broken = () if whole else (f"no plan in time: {error}",)
        return Verdict(broken, best, None, refused=True)
    except InfeasibleError as error:
        return Verdict(tuple(_broken_refusal(case, best, error)), best, None, refused=False)
    except AutopartError as error:
        return Verdict((f"the demands are refused: {error}",), best, None, refused=True)
    broken = list(_broken(case, plan, found, best))
    if any_order:
        broken += _broken_any_order(case, plan)
    return Verdict(tuple(broken), best, plan, refused=False)


def _solved(case: Case, words: dict[str, Any], *, again: bool) -> Plan:
    """The plan. On a starved machine the limit may pass before the search begins, so a second solve has more."""
    try:
        return solve(case.profiles, case.problems[0].cluster, time_limit=TIME_LIMIT, **words)
    except NoPlanFound:
        if not again:
            raise
        more = MORE * TIME_LIMIT
        return solve(case.profiles, case.problems[0].cluster, time_limit=more, **words)


def _broken_refusal(case: Case, best: Found | None, error: InfeasibleError) -> Iterator[str]:
    if best is not None:
        yield f"false infeasible: {best.words}: {error}"
    problem = case.problems[0]
    plain = problem.cluster.host_memory_bytes is None and not problem.cluster.gpus
    if error.least_bytes is not None and plain and len(case.searched) == 1:
        least = low_memory(case.searched[0])
        if least != error.least_bytes:
            yield f"the least memory is {least}, not {error.least_bytes}: {error}"


def _broken(
    case: Case, plan: Plan, found: Sequence[Found | None], best: Found | None
) -> Iterator[str]:
    searched = [(size.microbatch_size, size.group, size.zero1) for size in plan.sizes]
    at = searched.index((plan.microbatch_size, plan.group, _zero1(case, plan)))
    problem = case.searched[at]
    own_degrees = has_several_degrees(plan)
    # Step 1: the plan is what it says, by the verifier and by the witness.
    failed = [check for check in verify(plan, case.profiles) if not check.passed]
    yield from (f"verify refuses the plan: {check.name}: {check.detail}" for check in failed)
    own = _price_of_degrees(case, plan) if own_degrees else price_of_plan(problem, plan)
    value = value_of(problem, own)
    if abs(own.step - plan.prediction.step_time) > SAME * own.step:
        yield f"the plan says a step of {plan.prediction.step_time}, the witness {own.step}"
    period = plan.prediction.period
    if problem.objective == "period" and abs(own.period - period) > SAME * period:  # pyright: ignore
        yield f"the plan says a period of {period}, the witness {own.period}"
    if not own.fits:
        yield f"the plan does not fit: {own.peaks}"
    if best is None and _is_tried(plan):
        yield f"a plan that breaks its demands: {plan.schedule} on {stage_ranks(plan)}"
    if best is not None:
        yield from _broken_bounds(problem, plan, found, best, value)


def _zero1(case: Case, plan: Plan) -> Literal[True] | msgspec.UnsetType:
    """What the plan's own entry says of ZeRO-1: only where other entries differ."""
    return True if case.words and plan.training.zero1 else msgspec.UNSET


def _broken_bounds(
    problem: Problem, plan: Plan, found: Sequence[Found | None], best: Found, value: float
) -> Iterator[str]:
    # Step 2: no bound lies above a step that exists.
    if plan.certificate.lower_bound > best.value * (1 + SAME):
        yield f"the bound {plan.certificate.lower_bound} is too high: {best.words}"
    for size, at_size in zip(plan.sizes, found, strict=True):
        if size.lower_bound is None and at_size is not None:
            yield f"size {size.microbatch_size}: it has a plan: {at_size}"
        elif at_size and size.lower_bound and size.lower_bound > at_size.value * (1 + SAME):
            yield (f"size {size.microbatch_size}: bound {size.lower_bound} above {at_size.value}")
    # Step 3: nothing is better than the best of all; with gap 0 the plan is as good.
    if CUSTOM not in problem.demands.schedules and value < best.value * (1 - SAME):
        yield f"the plan takes {value}, less than the best of all, {best.value}"
    if plan.certificate.gap == 0 and value > best.value * (1 + SAME):
        yield f"gap 0, but the plan takes {value}, and {best.words}"


def _degree_sets(case: Case) -> list[tuple[bool, dict[int, Problem]]]:
    """For each word on sequence parallelism the problem of each degree, where there are two at least."""
    gpus = case.problems[0].cluster.gpus_per_node
    fitting = [one for one in case.variants if gpus % one.group.tensor == 0]
    pairs = list(zip(fitting, case.problems[1:], strict=True))
    sets = [
        (
            split,
            {one.group.tensor: own for one, own in pairs if one.group.sequence_parallel is split},
        )
        for split in (False, True)
    ]
    return [(split, {1: case.problems[0]} | own) for split, own in sets if own]


def _price_of_degrees(case: Case, plan: Plan) -> Price:
    """The witness's price for a plan whose stages have tensor degrees of their own."""
    tensors = stage_groups(plan)
    split = any(isinstance(one, Group) and one.sequence_parallel for one in tensors)
    pricer = DegreesPricer(dict(_degree_sets(case))[split], split=split)
    gpus = gpus_of_ranks(rank_sizes(plan))
    first = tuple(tuple(gpus[rank].start for rank in own) for own in stage_ranks(plan))
    # Slots as the witness counts them: each stage's replicas in their order.
    slots = grid(tuple(range(len(plan.stages))), len(plan.stages[0].ranks))
    setting = Setting(plan.schedule, slots, plan.num_microbatches)
    degrees = [group_size(one) for one in tensors]
    return pricer.price(setting, degrees, first, _cuts_of(case.problems[0], plan))


def _cuts_of(problem: Problem, plan: Plan) -> list[int]:
    """The layers ahead of each cut, as the bits of a number."""
    place = positions(problem.graph)
    cuts = [0]
    for stage in plan.stages:
        cuts.append(cuts[-1] | sum(1 << place[name] for name in stage.layers))
    return cuts


def _is_tried(plan: Plan) -> bool:
    """Whether the witness tries every order on the plan's pipeline, or the plan has a named one."""
    return plan.schedule != CUSTOM or are_all_tried(slots_of(plan), plan.num_microbatches)


def _broken_any_order(case: Case, plan: Plan) -> Iterator[str]:
    """The second bound, against every named schedule with any stages per rank."""
    if case.problems[0].objective == "bottleneck" or case.problems[0].demands.replicas_per_stage:
        return
    names = tuple(name for name in SCHEDULES if name != CUSTOM)
    for problem in case.searched:
        demands = msgspec.structs.replace(problem.demands, schedules=names, stages_per_rank=None)
        best = optimum(msgspec.structs.replace(problem, demands=demands))
        if best and plan.certificate.any_order_bound > best.value * (1 + SAME):
            yield f"the bound over every order, {plan.certificate.any_order_bound}, is too high: {best.words}"


def price_of_plan(problem: Problem, plan: Plan) -> Price:
    """The witness's price for a plan. Policies follow the rule, or are the plan's where a rank's stages choose together."""
    place, cuts = positions(problem.graph), _cuts_of(problem, plan)
    ranks, slots = stage_ranks(plan), slots_of(plan)
    own = None
    if plan.schedule == CUSTOM:
        used = sorted({rank for stage in ranks for rank in stage})
        own = tuple(tuple(map(_action, plan.orders[rank].split())) for rank in used)
    setting = Setting(plan.schedule, slots, plan.num_microbatches, own)
    pricer, spot = Pricer(problem), place_on(gpus_of(problem.cluster), ranks)
    if plan.schedule not in CLASSIC and pricer.opens_policies(setting):
        chosen = [
            (
                [policy_of_layers(own)[name] for name in sorted(own.layers, key=place.__getitem__)],
                own.optimizer_on_host,
            )
            for own in plan.stages
        ]
        return pricer.price_of(setting, spot, cuts, chosen)
    price = pricer.price(setting, spot, cuts)
    assert price is not None
    return price


def slots_of(plan: Plan) -> StageSlots:
    """The stages of a plan on the ranks that it uses, counted from 0."""
    ranks = stage_ranks(plan)
    slot = {rank: at for at, rank in enumerate(sorted({r for own in ranks for r in own}))}
    return tuple(tuple(slot[rank] for rank in own) for own in ranks)


def _action(word: str) -> tuple[int, str, int]:
    """An action from its letters, such as `2F0`."""
    op = next(letter for letter in word if letter.isalpha())
    stage, microbatch = word.split(op)
    return int(stage), op, int(microbatch)
