"""The planner's claims, held against an optimizer that tries everything and shares nothing with it.

The witness (tests/support/witness/) has its own cost model, its own simulator and its own placements. The first
tests hold its prices against the planner's, and its symmetry against all permutations. The others hold the
planner's claims against the best of all plans.
"""

import pytest

from autopart import pricing
from autopart.cost.stage_times import bottleneck_time
from tests.support.long_tests import long_tests
from tests.support.seeds import seeds
from tests.support.witness.cases import EVERY_ORDER, KINDS, draw_case
from tests.support.witness.claims import SAME, judge
from tests.support.witness.placements import Gpus, all_places, places
from tests.support.witness.plans import (
    own_policies,
    random_lending_plans,
    random_plans,
    random_policies,
    ranks_of_peaks,
)


@pytest.mark.slow
@pytest.mark.parametrize("block", seeds(1, 21, slow=4))
def test_the_witness_and_the_planner_price_each_plan_alike(block: int):
    """Steps and bottlenecks agree within 1e-9, bytes exactly."""
    fitting = 0
    for seed in range(200 * block, 200 * (block + 1)):
        for plan in random_plans(seed, count=5):
            ours = plan.price
            theirs = pricing.price(plan.problem, plan.layout, plan.partition)
            assert ours.fits == pricing.fits(plan.problem, theirs), seed
            if not plan.by_rule:
                # The witness has the fastest policies, the planner's rule those with the fewest seconds on each rank.
                slower, given = theirs.prediction.step_time, own_policies(plan)
                theirs = pricing.price(plan.problem, plan.layout, plan.partition, given=given)
                assert ours.fits == pricing.fits(plan.problem, theirs), seed
                assert not ours.fits or ours.step <= slower * (1 + SAME), seed
            if not ours.fits:
                # No rule says which policies a plan has that does not fit.
                continue
            fitting += 1
            predicted, ranks = theirs.prediction, plan.layout.stage_ranks
            busiest = bottleneck_time(predicted.stages, ranks, plan.problem.num_microbatches)
            assert ours.step == pytest.approx(predicted.step_time, rel=SAME), seed
            assert ours.bottleneck == pytest.approx(busiest, rel=SAME), seed
            peaks = [predicted.rank_peak_bytes[rank] for rank in ranks_of_peaks(plan)]
            assert list(ours.peaks) == peaks, seed
    assert fitting > 200


@pytest.mark.slow
@pytest.mark.parametrize("block", seeds(1, 6))
def test_the_witness_and_the_planner_price_lent_stash_alike(block: int):
    """The witness follows every stash by itself. Steps agree within 1e-9, bytes exactly."""
    lending = 0
    for seed in range(100 * block, 100 * (block + 1)):
        for plan in random_lending_plans(seed, count=4):
            theirs = pricing.price(plan.problem, plan.layout, plan.partition)
            predicted = theirs.prediction
            lending += any(stage.memory.borrowed for stage in predicted.stages)
            assert plan.price.fits == pricing.fits(plan.problem, theirs), seed
            assert plan.price.step == pytest.approx(predicted.step_time, rel=SAME), seed
            peaks = [predicted.rank_peak_bytes[rank] for rank in ranks_of_peaks(plan)]
            assert list(plan.price.peaks) == peaks, seed
    assert lending > 40


@pytest.mark.slow
@pytest.mark.parametrize("block", seeds(1, 11))
def test_the_witness_and_the_planner_agree_on_any_policies(block: int):
    """Seconds and bytes of each stage, with policies and a place for optimizer state drawn at random."""
    changed = 0
    for seed in range(100 * block, 100 * (block + 1)):
        for stage, ours in random_policies(seed):
            changed += set(ours.policies) != {"keep"}
            assert ours.forward == pytest.approx(stage.forward_time, rel=SAME), seed
            assert ours.backward == pytest.approx(stage.backward_time, rel=SAME), seed
            assert ours.update == pytest.approx(stage.update_time, rel=SAME), seed
            assert (ours.peak, ours.host) == (stage.peak_bytes, stage.memory.host), seed
    assert changed > 60


@pytest.mark.parametrize(
    ("per_node", "groups"),
    [(2, (0,) * 4), (3, (0,) * 6), (2, (0,) * 6), (1, (0,) * 4), (2, (0, 0, 1, 1)), (3, (0, 1, 1))],
)
def test_gpus_of_one_kind_on_one_node_are_alike(per_node: int, groups: tuple[int, ...]):
    """The witness's short list of placements has each place that any permutation of all GPUs has."""
    gpus = Gpus(per_node, groups)
    for slots in (
        ((0,), (1,), (2,)),
        ((0, 1), (2,)),
        ((0, 1), (2, 3)),
        ((0,), (1, 2, 3)),
        ((0,), (1,), (1,), (0,)),
        ((0, 1), (2, 3), (0, 1), (2, 3)),
        ((0, 1), (1, 0)),
        ((0, 3), (1, 2), (2, 1), (3, 0)),
        ((0, 1, 2, 3), (1, 0, 3, 2)),
    ):
        if 1 + max(max(own) for own in slots) <= len(groups):
            assert places(gpus, slots).keys() == all_places(gpus, slots)


RESEMBLED = (
    "one node",
    "nodes",
    "policies",
    "replicas per stage",
    "policies, V",
    "other schedules",
    "mirrored",
    "period",
    "sizes",
    "networks",
    "hidden syncs",
    "every order",
    "tensor degrees",
    "tensor degrees per stage",
    "sharded state",
    "groups on several nodes",
)
"""Kinds that another kind includes, or that other tests judge. Their cases are long tests."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [*(kind for kind in KINDS if kind not in RESEMBLED), *long_tests(*RESEMBLED)]
)
@pytest.mark.parametrize("block", seeds(1, 11, slow=1))
def test_no_claim_of_the_planner_is_false(kind: str, block: int):
    """A plan is found where one exists, and no bound lies above the best of all plans.

    `verify` accepts the plan. With gap 0 the plan is the best. The least memory in an error is the least.
    """
    # Searches for orders take longer.
    few, many = (4, 30) if kind in EVERY_ORDER else (10, 100)
    first = 0 if block == 0 else 100 * block
    last = first + (few if block == 0 else many)
    broken = [
        f"{kind} {seed}: {claim}"
        for seed in range(first, last)
        for claim in judge(draw_case(kind, seed), any_order=seed % 5 == 0).broken
    ]
    assert broken == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [6058, 6105])
def test_own_orders_keep_pins_and_groups_of_layers(seed: int):
    assert judge(draw_case("every order", seed)).broken == ()


@pytest.mark.slow
def test_a_plan_on_different_gpus_is_found_on_the_only_assignments_that_fit():
    # The third of four stages needs the one larger GPU.
    assert judge(draw_case("networks", 6769)).broken == ()
