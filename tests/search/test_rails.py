"""A plan's sends between nodes keep to their rails where others are slower."""

import msgspec
import pytest

import autopart
from autopart.cost.stage_times import cut_links
from autopart.records.cluster import Cluster
from autopart.records.known_clusters import find_preset, preset_cluster
from autopart.records.layouts import Layout
from autopart.records.plan import stage_ranks
from autopart.records.profile import Profile
from autopart.search.demands import make_problem
from autopart.search.likely_assignments import likely_layouts
from autopart.search.options import SolveOptions
from tests.support.samples import sample_profile


def machine(off_rail: float) -> Cluster:
    """Two nodes with eight GPUs each, and slow links between them."""
    cluster = preset_cluster(find_preset("dgx-h100"), 2)
    assert cluster.network is not None
    network = msgspec.structs.replace(cluster.network, off_rail=off_rail)
    across = msgspec.structs.replace(cluster.inter_node, bandwidth=1e9)
    return msgspec.structs.replace(cluster, network=network, inter_node=across)


@pytest.mark.parametrize("stages", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_sends_off_their_rail_cost_nothing_where_every_rank_finds_its_rail(stages: int) -> None:
    profile: Profile = sample_profile()
    plans = [
        autopart.solve(
            profile,
            machine(off_rail),
            num_stages=stages,
            num_replicas=16 // stages,
            global_batch=64,
        )
        for off_rail in (1.0, 0.1)
    ]
    equal, apart = (plan.prediction.step_time for plan in plans)
    assert apart == pytest.approx(equal)
    links = [link for link in cut_links(plans[1].cluster, stage_ranks(plans[1])) if link]
    assert min(link.bandwidth for link in links) >= 1e9
    assert all(check.passed for check in autopart.verify(plans[1], profile))
    assert plans[1].certificate.lower_bound == pytest.approx(plans[0].certificate.lower_bound)


def test_likely_assignments_have_one_with_each_stage_on_a_node_and_sends_on_their_rails() -> None:
    ranks = tuple(tuple(range(at, at + 4)) for at in (0, 4, 8, 12))
    asked = make_problem(sample_profile(), machine(0.1), 16, SolveOptions(num_stages=4))
    layout = Layout(schedule="1f1b", stage_ranks=ranks, num_microbatches=16)
    rates = [
        [link.bandwidth for link in cut_links(asked.cluster, one.stage_ranks) if link]
        for one in likely_layouts(asked, layout, None)
        if all(len({rank // 8 for rank in own}) == 1 for own in one.stage_ranks)
    ]
    across = asked.cluster.inter_node.bandwidth
    assert min(rates[0]) == 0.1 * across
    assert any(min(own) == across for own in rates)
