"""Plans whose stages have tensor degrees of their own, by hand."""

from collections.abc import Sequence
from typing import Any

from autopart.records.cluster import Link
from autopart.records.plan import Plan
from autopart.records.profile import Profile
from autopart.search.options import SolveOptions
from autopart.search.plan_of_degrees import plan_of_degrees
from tests.support.plan_kinds import ROW, uneven_layer
from tests.support.problems import chain_graph, cluster, profile
from tests.support.tensor_profiles import with_degrees

SLOW_SENDS = {"intra_node": Link(bandwidth=200.0), "inter_node": Link(bandwidth=20.0)}
GIVEN = with_degrees(ROW, 2, 4, whole=8)


def by_hand(
    cuts: Sequence[int],
    degrees: Sequence[int],
    *,
    given: Profile = GIVEN,
    nodes: int = 1,
    gpus: int = 8,
    **options: Any,
) -> Plan:
    """A plan with these cuts and degrees under 1F1B, with 4 microbatches unless `options` say otherwise."""
    words: dict[str, Any] = {"num_microbatches": 4, "schedule": "1f1b", "sequence_parallel": "off"}
    on = cluster(nodes, gpus, **SLOW_SENDS)
    asked = SolveOptions(**(words | options))
    return plan_of_degrees(given, on, cuts, degrees, asked)


def uneven_work(seed: int) -> Profile:
    """A profile with one layer as long as all others together, and degrees 1, 2 and 4 with costly collectives."""
    times = [[4.0, 2.0, 2.0], [2.0, 6.0, 2.0, 2.0], [1.0, 1.0, 4.0, 2.0]][seed]
    layers = [
        uneven_layer(at, forward_time=time, input_grad_time=time, weight_grad_time=time)
        for at, time in enumerate(times)
    ]
    return with_degrees(profile(chain_graph(*layers)), 2, 4, whole=40)
