"""The answer of a sizing: the front, what is known about every number of GPUs, and the proof that no fewer do."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from autopart.errors import AutopartError, InfeasibleError, NoPlanFound
from autopart.records.plan import Plan
from autopart.records.plan_degrees import stage_groups
from autopart.records.profile import profile_hash
from autopart.records.rank_group import context_degree, expert_degree, shard_degree, tensor_degree
from autopart.records.size import (
    MARKS,
    FewestGpus,
    Mark,
    SizedCount,
    SizedKind,
    SizedPlan,
    Verdict,
)
from autopart.search.count_search import NOTHING, KindSearch
from autopart.search.size_front import TOLERANCE, Found, TrainingLimits, front_of
from autopart.search.size_options import GpuCount
from autopart.search.size_search import SizeSearch
from autopart.text import counted
from autopart.units import format_training


def gpus_in_words(count: GpuCount, name: str) -> str:
    """`64 h100-sxm`."""
    return f"{count.gpus} {name}"


def meets(limits: TrainingLimits, own: Found) -> bool:
    """Whether a plan meets the date and the budget."""
    return own.step < min(limits.longest_step, limits.dearest_step(own.kind, own.count))


def front(search: SizeSearch) -> list[Found]:
    """The plans of the front."""
    return front_of([own for own in search.found() if meets(search.limits, own)])


class Judged(NamedTuple):
    """What is known about one number of GPUs."""

    verdict: Verdict
    reason: str


def judged(search: SizeSearch, own: KindSearch, count: GpuCount, best: Sequence[Found]) -> Judged:
    """The verdict on a number of GPUs; `best` is the front."""
    if any(one.kind.name == own.kind.name and one.count == count for one in best):
        return Judged("front", "on the front")
    limits, (bound, _) = search.limits, own.bound(count)
    over, by = limits.undominated_step(own.kind, count, search.found())
    if bound == NOTHING:
        return Judged("no memory", "no plan fits")
    least = format_training(limits.num_steps * bound)
    if bound >= limits.longest_step:
        return Judged("too slow", f"no plan meets the date: they take {least} at least")
    dear = by is not None and by.cost > limits.budget
    if bound >= limits.dearest_step(own.kind, count) or (bound >= over and dear):
        cost = max(limits.cost(own.kind, count, bound), by.cost if by is not None and dear else 0.0)
        return Judged("too dear", f"no plan costs less than {cost:,.0f} dollars")
    if bound >= over and by is not None:
        return Judged("dominated", f"no plan gains over {gpus_in_words(by.count, by.kind.name)}")
    return Judged("undecided", _why_undecided(search, own, count, bound))


def _why_undecided(search: SizeSearch, own: KindSearch, count: GpuCount, bound: float) -> str:
    state, steps = own.state(count), search.limits.num_steps
    if state.error is not None:
        return str(state.error)
    least = (
        f"bounds exclude less than {format_training(steps * bound)}" if bound else "not searched"
    )
    if state.found is None:
        return f"no plan was found; {least}"
    found = format_training(steps * state.found.step)
    return f"the best plan found takes {found} and is not on the front; {least}"


def sized_counts(search: SizeSearch, best: Sequence[Found]) -> list[SizedCount]:
    """Every number of GPUs that was looked at."""
    rows: list[SizedCount] = []
    for own in search.searches:
        for count in search.tried[own.kind.name]:
            bound, source = own.bound(count)
            found = own.state(count).found
            verdict, reason = judged(search, own, count, best)
            rows.append(
                SizedCount(
                    gpu=own.kind.name,
                    gpus=count.gpus,
                    verdict=verdict,
                    lower_bound=None if bound == NOTHING else bound,
                    bound_from=source.gpus,
                    step_time=None if found is None else found.step,
                    reason=reason,
                )
            )
    return rows


def sized_kind(search: SizeSearch, own: KindSearch) -> SizedKind:
    """One GPU kind, and the fewest of its GPUs that do."""
    node = own.kind.node
    return SizedKind(
        gpu=own.kind.name,
        price=own.kind.price,
        gpus_per_node=node.gpus_per_node,
        memory_bytes=node.memory_bytes,
        source=node.source,
        profiles=tuple(map(profile_hash, own.kind.profiles)),
        fewest=_fewest(search, own),
    )


def _fewest(search: SizeSearch, own: KindSearch) -> FewestGpus:
    limit, counts = search.limits.longest_step, search.tried[own.kind.name]
    done = [count for count in counts if own.state(count).has_below(limit)]
    first = min(done, default=None)
    below = [
        count for count in _all_counts(own, counts) if first is None or count.gpus < first.gpus
    ]
    late = _up_to(below, [count for count in below if own.bound(count)[0] >= limit])
    full = _up_to(below, [count for count in below if own.bound(count)[0] == NOTHING])
    bound = own.bound(late)[0] if late is not None else NOTHING
    return FewestGpus(
        gpus=first.gpus if first is not None else None,
        no_memory=full.gpus if full is not None else 0,
        too_slow=late.gpus if late is not None else 0,
        lower_bound=None if bound == NOTHING else bound,
        needed=None if limit == math.inf else search.limits.within / search.limits.num_steps,
        undecided=tuple(count.gpus for count in below if own.bound(count)[0] < limit),
    )


def _all_counts(own: KindSearch, counts: Sequence[GpuCount]) -> list[GpuCount]:
    """The parts of a node that were tried, and every number of whole nodes up to the largest tried one."""
    each = own.kind.node.gpus_per_node
    parts = [count for count in counts if count.gpus < each]
    most = max((count.nodes for count in counts if count.gpus >= each), default=0)
    return [*parts, *(GpuCount(n * each, n) for n in range(1, most + 1))]


def _up_to(below: Sequence[GpuCount], excluded: Sequence[GpuCount]) -> GpuCount | None:
    """The largest number of GPUs up to which every one is excluded."""
    last = None
    for count in below:
        if count not in excluded:
            break
        last = count
    return last


def sized_plans(
    search: SizeSearch, best: Sequence[Found], plans: Sequence[Plan]
) -> list[SizedPlan]:
    """The plans of the front as the record has them."""
    marks: dict[Mark, int] = {
        "cheapest": _first_least([own.cost for own in best]),
        "fastest": _first_least([own.step for own in best]),
        "fewest": _first_least([own.count.gpus for own in best]),
    }
    bounds = {own.kind.name: own for own in search.searches}
    return [
        SizedPlan(
            gpu=own.kind.name,
            gpus=own.count.gpus,
            nodes=own.count.nodes,
            training_seconds=search.limits.num_steps * own.step,
            cost=own.cost,
            step_time=own.step,
            lower_bound=(bound := min(own.step, bounds[own.kind.name].bound(own.count)[0])),
            gap=own.step / bound - 1 if bound else None,
            num_stages=len(plan.stages),
            num_replicas=max(len(stage.ranks) for stage in plan.stages),
            tensor=max(map(tensor_degree, stage_groups(plan))),
            context=context_degree(plan.group),
            expert=expert_degree(plan.group),
            shard_degree=shard_degree(plan.group),
            schedule=plan.schedule,
            microbatch_size=plan.microbatch_size,
            recomputed=sum(len(stage.recompute) + len(stage.selective) for stage in plan.stages),
            marks=tuple(mark for mark in MARKS if marks[mark] == at),
        )
        for at, (own, plan) in enumerate(zip(best, plans, strict=True))
    ]


def _first_least(values: Sequence[float]) -> int:
    """The first place whose value is the least, or equal to it."""
    least = min(values) * (1 + TOLERANCE)
    return next(at for at, value in enumerate(values) if value <= least)


def nothing_meets(search: SizeSearch) -> AutopartError:
    """The error where no plan meets the limits: what is nearest, and whether it is proven."""
    limits = search.limits
    found = sorted(search.found(), key=lambda own: own.count)
    rows = sized_counts(search, [])
    open_counts = [f"{row.gpus} {row.gpu}" for row in rows if row.verdict == "undecided"]
    in_time = [own for own in found if own.step < limits.longest_step]
    if in_time:
        best = in_time[_first_least([own.cost for own in in_time])]
        asked = f"{limits.budget:,.0f} dollars"
        advice = "raise --budget, or give more time with --within"
    elif found:
        best = found[_first_least([own.step for own in found])]
        asked = format_training(limits.within)
        advice = "raise --within or --most-gpus"
    else:
        best, asked = None, ""
        advice = "raise --most-gpus, or allow --recompute auto or --zero1"
    most = max(row.gpus for row in rows)
    if best is None:
        proven = all(row.verdict == "no memory" for row in rows)
        lead = "no plan fits" if proven else "no plan was found"
        text = f"{lead} on any number of GPUs that was tried, up to {most}; {advice}"
    else:
        days = format_training(limits.num_steps * best.step)
        text = (
            f"no number of GPUs that was tried, up to {most}, meets {asked}: the nearest is "
            f"{gpus_in_words(best.count, best.kind.name)} with {days} and {best.cost:,.0f} dollars; {advice}"
        )
    if not open_counts:
        return InfeasibleError(text)
    listed = ", ".join(open_counts[:6]) + (", …" if len(open_counts) > 6 else "")
    return NoPlanFound(
        f"{text}; not decided: {counted(len(open_counts), 'number')} of GPUs ({listed}): raise --time-limit"
    )
