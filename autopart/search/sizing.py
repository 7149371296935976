"""How many GPUs of which kind a training needs: the front of GPUs, days and cost.

A training has a fixed number of samples per step, and so a fixed number of steps. It takes that many times the
seconds from step to step. It costs the price of all GPUs for that time. The search stands in
autopart/search/size_search.py.
"""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Unpack

from autopart.errors import UsageError
from autopart.records.cluster import Cluster
from autopart.records.plan import Plan
from autopart.records.profile import Profile
from autopart.records.size import Sizing
from autopart.records.version import __version__
from autopart.search.count_search import KindSearch
from autopart.search.layout_search import BASELINES
from autopart.search.options import SolveOptions
from autopart.search.size_answer import (
    front,
    nothing_meets,
    sized_counts,
    sized_kind,
    sized_plans,
)
from autopart.search.size_front import TrainingLimits
from autopart.search.size_options import (
    SECONDS_PER_DAY,
    SizeKeywords,
    SizeOptions,
    check_size_options,
    counts_to_try,
    priced_kinds,
    tokens_in_sample,
)
from autopart.search.size_search import Listener, SizeSearch, TimeLimits
from autopart.stopping.ctrl_c import stop_on_interrupt
from autopart.stopping.time_limit import deadline_in


class SizedPlans(NamedTuple):
    """The answer, and the plans of its front."""

    sizing: Sizing
    plans: tuple[Plan, ...]
    """One plan for each entry of the front, in its order."""


def size(
    profiles: Profile | Sequence[Profile],
    prices: Mapping[str, float],
    **keywords: Unpack[SizeKeywords],
) -> SizedPlans:
    """How many GPUs of which kind a training needs, how many days and how much money.

    `prices` has dollars per GPU hour, by GPU kind or known cluster. Each kind needs profiles of its own. The keywords
    are the fields of `autopart.search.size_options.SizeOptions` and of `autopart.search.options.SolveOptions`.
    `size_with_options` says more, and raises the same errors.
    """
    given: dict[str, Any] = dict(keywords)
    clusters = given.pop("clusters", {})
    names = {field.name for field in dataclasses.fields(SizeOptions)}
    own = {name: given.pop(name) for name in names & given.keys()}
    alone = [profiles] if isinstance(profiles, Profile) else profiles
    asked, options = SizeOptions(**own), SolveOptions(**given)
    return size_with_options(alone, prices, asked, options, clusters=clusters)


def size_with_options(
    profiles: Sequence[Profile],
    prices: Mapping[str, float],
    asked: SizeOptions,
    options: SolveOptions,
    *,
    clusters: Mapping[str, Cluster],
    listener: Listener | None = None,
) -> SizedPlans:
    """The front of GPUs, days and cost, with the best plan of each of its points.

    All searches share `options.time_limit`. `clusters` has clusters of the user's own, by the names that have prices.
    Raises UsageError on a question that makes no sense, InfeasibleError where it is proven that nothing meets the
    limits, and NoPlanFound where nothing was found without such a proof. Both name the nearest plan.
    """
    began = time.perf_counter()
    check_size_options(asked)
    batch = _batch(options)
    kinds = priced_kinds(profiles, prices, clusters, asked.gpus_per_node)
    length = tokens_in_sample(profiles, asked.tokens_per_sample)
    search = SizeSearch(
        [KindSearch(kind, options) for kind in kinds],
        {kind.name: counts_to_try(kind.node, asked, batch) for kind in kinds},
        TrainingLimits(
            num_steps=math.ceil(asked.tokens / (batch * length)),
            within=SECONDS_PER_DAY * (asked.within_days or math.inf),
            budget=asked.budget or math.inf,
        ),
        TimeLimits(deadline_in(options.time_limit), asked.count_limit),
        refines=asked.counts == "auto",
        listener=listener,
    )
    with stop_on_interrupt() as interrupt:
        search.run()
        best = front(search)
        if not best and interrupt.asked:
            raise KeyboardInterrupt
        if not best:
            search.find_nearest()
            raise nothing_meets(search)
        plans = tuple(own.found.plan() for own in best)
    sizing = Sizing(
        model=profiles[0].source.model,
        tokens=asked.tokens,
        tokens_per_sample=length,
        global_batch=batch,
        num_steps=search.limits.num_steps,
        within_seconds=_finite(search.limits.within),
        budget=asked.budget,
        objective="period" if options.objective == "period" else "step",
        kinds=tuple(sized_kind(search, own) for own in search.searches),
        front=tuple(sized_plans(search, best, plans)),
        counts=tuple(sized_counts(search, best)),
        seconds=time.perf_counter() - began,
        autopart=__version__,
    )
    return SizedPlans(sizing, plans)


def _finite(number: float) -> float | None:
    return None if number == math.inf else number


def _batch(options: SolveOptions) -> int:
    """The samples of a step; raises UsageError where they, or the time from step to step, are not defined."""
    if options.objective == "bottleneck" or options.solver in BASELINES:
        raise UsageError(
            "size needs the time from step to step and bounds that hold: take --objective step or period, and "
            "--solver auto, dp or ilp"
        )
    if options.global_batch is None or options.num_microbatches is not None:
        raise UsageError(
            "say how many samples a step has, whatever the number of GPUs: --global-batch 1024"
        )
    if options.global_batch < 1:
        raise UsageError(f"--global-batch {options.global_batch}: write at least 1")
    return options.global_batch
