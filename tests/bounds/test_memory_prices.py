"""The bound by weights and prices of memory, against every partition under every choice of policies."""

import itertools

import numpy as np
import pytest

from autopart.bounds import memory_prices
from autopart.bounds.memory_prices import memory_priced_bound, priced_bound
from autopart.certificate.fastest_choices import fastest_choices
from autopart.cost.cuts import Cuts, all_cuts
from autopart.pricing import compile_layout
from autopart.records.cluster import HostLink
from autopart.records.layer_graph import Recompute
from autopart.records.layouts import Layout
from autopart.records.problem import Demands, Problem
from autopart.schedules.catalogue import KINDS
from tests.activations.test_frontier import RECOMPUTE
from tests.activations.test_shared_ranks import ON_HOSTS, drawn_layout
from tests.certificate.test_fastest_choices import fastest_of_all
from tests.support.problems import chain_graph, cluster, layer, problem
from tests.support.seeds import seeds


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(0, 120, slow=5))
def test_no_partition_under_any_policies_beats_the_bound(seed: int) -> None:
    asked, layout = drawn_layout(seed)
    cuts, stages = all_cuts(asked.graph), len(layout.stage_ranks)
    bound = priced_bound(asked, layout, 1, cuts)
    best = float("inf")
    for inner in itertools.combinations(range(1, len(cuts.nested) - 1), stages - 1):
        path = (0, *inner, len(cuts.nested) - 1)
        if all(cuts.nested[i, j] for i, j in itertools.pairwise(path)):
            partition = tuple(
                tuple(np.flatnonzero(cuts.ahead[j] & ~cuts.ahead[i]).tolist())
                for i, j in itertools.pairwise(path)
            )
            best = min(best, fastest_of_all(asked, layout, partition))
    assert 0 < bound <= best


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(0, 120, slow=5))
def test_no_partition_beats_the_bound_where_bytes_may_lie_on_the_host(seed: int) -> None:
    asked, layout = drawn_layout(seed, ON_HOSTS)
    cuts, stages = all_cuts(asked.graph), len(layout.stage_ranks)
    bound = priced_bound(asked, layout, 1, cuts)
    inner = itertools.combinations(range(1, len(cuts.nested) - 1), stages - 1)
    paths = [(0, *own, len(cuts.nested) - 1) for own in inner]
    paths = [p for p in paths if all(cuts.nested[i, j] for i, j in itertools.pairwise(p))]
    if paths:
        program = compile_layout(layout)
        found = fastest_choices(asked, layout, program, cuts, paths, float("inf"))
        assert 0 < bound <= min(one.step for one in found)


def asked_with(
    memory: int, demands: Demands = RECOMPUTE, link: HostLink | None = None
) -> tuple[Problem, Layout, Cuts]:
    """Sixteen equal layers, each with 100 bytes of stash, in eight stages on four ranks."""
    again = Recompute(extra_time=1.0, stash_bytes=0)
    layers = [layer(f"l{at}", stash_bytes=100, recompute=again) for at in range(16)]
    graph = chain_graph(*layers, num_bytes=0)
    placement = KINDS["interleaved-1f1b"].placement(4, 2)
    layout = Layout(
        schedule="interleaved-1f1b",
        stage_ranks=tuple((rank,) for rank in placement),
        num_microbatches=8,
    )
    machine = cluster(memory_bytes=memory, host_link=link)
    asked = problem(graph, num_microbatches=8, cluster=machine, demands=demands)
    return asked, layout, all_cuts(graph)


def test_little_memory_raises_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that must be recomputed somewhere lengthen the step of every partition."""
    monkeypatch.setattr(memory_prices, "FEW_PARTITIONS", 10)
    roomy, tight = (memory_priced_bound(*asked_with(memory)) for memory in (10_000, 900))
    # Each layer takes 3 s, and 8 microbatches of 16 layers on 4 ranks 96 s.
    assert 95.99 < roomy < 110
    assert tight > 1.03 * roomy


def test_a_slow_link_to_the_host_raises_the_bound_of_offload(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What leaves the device is copied twice, and a rank copies one thing at a time."""
    monkeypatch.setattr(memory_prices, "FEW_PARTITIONS", 10)
    offload = Demands(offload="auto")
    links = [HostLink(bandwidth=own, latency=0.0, overlaps=True) for own in (1000.0, 5.0)]
    fast, slow = (memory_priced_bound(*asked_with(600, offload, link)) for link in links)
    assert 95.8 < fast < 110
    assert slow > 1.1 * fast
