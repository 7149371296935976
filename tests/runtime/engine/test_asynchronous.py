"""PipeDream and PipeDream-2BW on processes, compared with equal delayed updates in one process."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from autopart.errors import PlanError, UsageError
from autopart.records.plan import Plan
from autopart.runtime.engine.asynchronous import asynchronous_orders
from autopart.runtime.engine.asynchronous_rules import (
    RUNNABLE,
    AsynchronousRules,
    check_no_shared,
    rules_of,
)
from autopart.runtime.engine.run_settings import RunSettings, check_settings
from autopart.schedules.asynchronous_kind import Setting
from autopart.schedules.named.asynchronous import PIPEDREAM, TWO_BUFFERED
from tests.runtime.engine.test_placements import LOOP, Ranks, V, plan
from tests.support.long_tests import long_tests
from tests.support.runtime.delayed_updates import (
    Delayed,
    Guess,
    by_hand,
    complaint_of,
    in_pipeline,
    predicted_by_hand,
)
from tests.support.runtime.rank_pool import RankPool

LINE = {2: [[0], [1]], 3: [[0], [1], [2]], 4: [[0], [1], [2], [3]]}


def pipedream(k: int, stage: int, m: int) -> int:
    """Narayanan et al.: on stage s of k, microbatch m lacks the last k - 1 - s updates."""
    return max(0, m - (k - 1 - stage))


def two_buffered(n: int, m: int) -> int:
    """W(t+1) = W(t) - lr grad f(W(t-1)), on every stage."""
    return max(0, m // n - 1)


def assert_same(ranks: list[Delayed], hand: Delayed, tolerance: float = 1e-12) -> None:
    seen: set[str] = set()
    for one in ranks:
        assert one.losses == pytest.approx(hand.losses, rel=1e-6 if tolerance > 1e-12 else 1e-12)
        for name, tensor in one.state.items():
            apart = (tensor.double() - hand.state[name].double()).abs().max()
            assert apart <= tolerance * hand.state[name].abs().max(), name
            seen.add(name)
    assert seen == set(hand.state)


def check_pipedream(pool: RankPool, of: Plan, updates: int, optimizer: str) -> None:
    k = len(of.stages)
    ranks = pool.call(in_pipeline, of, "pipedream", updates, optimizer)[:k]
    hand = by_hand(of, updates, 1, optimizer, lambda s, m: pipedream(k, s, m))
    assert_same(ranks, hand)
    for stage, one in enumerate(ranks):
        assert one.versions == {m: pipedream(k, stage, m) for m in range(updates)}
        assert one.most_versions == most_versions_of(k, stage, updates), f"stage {stage}"
        if updates > k:
            assert one.most_versions == 1 + PIPEDREAM.extra_copies(Setting(k), stage)


def most_versions_of(k: int, stage: int, updates: int) -> int:
    """Versions in memory: the newest, and one for each start of a microbatch in flight."""
    begun = [
        {pipedream(k, stage, m) for m in range(u, min(u + k - stage - 1, updates))}
        for u in range(1, updates + 1)
    ]
    return max(len(older | {u}) for u, older in enumerate(begun, 1))


@pytest.mark.slow
def test_pipedream_on_two_stages_equals_delayed_updates_by_hand(two_ranks: RankPool):
    check_pipedream(two_ranks, plan("zoo:mlp-tiny", LINE[2]), 6, "momentum")


@pytest.mark.slow
@pytest.mark.parametrize("updates", [*long_tests(1, 3), 2, 9])
def test_pipedream_on_four_stages_equals_delayed_updates_for_few_and_many_microbatches(
    four_ranks: RankPool, updates: int
):
    check_pipedream(four_ranks, plan("zoo:mlp-tiny", LINE[4]), updates, "adamw")


def check_two_buffered(pool: RankPool, of: Plan, updates: int, optimizer: str) -> None:
    n = of.num_microbatches
    ranks = pool.call(in_pipeline, of, "pipedream-2bw", updates, optimizer)
    hand = by_hand(of, updates, n, optimizer, lambda s, m: two_buffered(n, m))
    assert_same(ranks, hand, 1e-12 if "mlp" in of.origin.model else 1e-8)
    for one in ranks:
        assert one.versions == {m: two_buffered(n, m) for m in one.versions}
        versions = TWO_BUFFERED.extra_copies(Setting(len(of.stages), n), 0) + 1
        assert one.most_versions == min(versions, updates + 1)


@pytest.mark.slow
def test_2bw_on_two_stages_equals_delayed_updates_by_hand(two_ranks: RankPool):
    check_two_buffered(two_ranks, plan("zoo:mlp-tiny", LINE[2], num_microbatches=3), 4, "adamw")


@pytest.mark.slow
@pytest.mark.parametrize(
    "ranks", [LINE[4], [[0, 1], [2], [3]], *long_tests([[0, 1], [2, 3]], [[0], [1, 2, 3]])]
)
@pytest.mark.parametrize("n", [*long_tests(4), 7])
def test_2bw_on_four_ranks_equals_delayed_updates_with_and_without_replicas(
    four_ranks: RankPool, ranks: Ranks, n: int
):
    check_two_buffered(four_ranks, plan("zoo:mlp-tiny", ranks, num_microbatches=n), 3, "momentum")


@pytest.mark.slow
def test_2bw_sums_the_gradients_of_tied_weights(four_ranks: RankPool):
    check_two_buffered(four_ranks, plan("zoo:gpt2-tiny", LINE[4]), 3, "momentum")


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["pipedream", *long_tests("pipedream-2bw")])
def test_recomputed_layers_use_the_weights_of_their_first_forward(
    two_ranks: RankPool, schedule: str
):
    for model in ("zoo:mlp-tiny", "tests/support/models/opaque.py:routed"):
        of = plan(model, LINE[2])
        stages = tuple(msgspec.structs.replace(s, recompute=s.layers) for s in of.stages)
        of = msgspec.structs.replace(of, stages=stages)
        check = check_pipedream if schedule == "pipedream" else check_two_buffered
        check(two_ranks, of, 5, "momentum")


@pytest.mark.parametrize("name", ["pipedream", "pipedream-2bw"])
def test_updates_follow_the_last_backward_of_their_microbatches(name: str):
    of = plan("zoo:mlp-tiny", LINE[2], num_microbatches=2)
    shown = [
        " ".join(str(e) if hasattr(e, "op") else f"u{e.number}" for e in order)
        for order in asynchronous_orders(
            LINE[2], rules_of(of, name), 4 if name == "pipedream" else 2
        )
    ]
    each = name == "pipedream"
    assert shown[1] == (
        "1F0 1B0 u0 1F1 1B1 u1 1F2 1B2 u2 1F3 1B3 u3"
        if each
        else "1F0 1B0 1F1 1B1 u0 1F2 1B2 1F3 1B3 u1"
    )
    assert shown[0] == (
        "0F0 0F1 0B0 u0 0F2 0B1 u1 0F3 0B2 u2 0B3 u3"
        if each
        else "0F0 0F1 0B0 0F2 0B1 u0 0F3 0B2 0B3 u1"
    )


@pytest.mark.parametrize(
    ("schedule", "ranks", "n", "said"),
    [
        ("pipedream", LOOP, 4, "runs one stage per rank, and this plan has ranks with several"),
        ("pipedream", [[0, 1], [2]], 4, "so it needs stages without replicas"),
        ("pipedream-2bw", LINE[3], 2, "needs at least 3 microbatches to an update, and 2 were"),
        ("hetpipe", LINE[2], 4, "hetpipe is only priced .* through a server; take pipedream, "),
        (
            "avgpipe",
            LINE[2],
            4,
            "avgpipe is only priced .* several copies of the model side by side",
        ),
        ("pipemare", LINE[2], 4, "pipemare is only priced .* a forward and a backward at once"),
        ("wpipe", LINE[2], 4, "wpipe runs two stages on each rank, .* --stages-per-rank 2"),
        ("wpipe", V, 4, "wpipe runs two stages on each rank, r and r . k / 2 of k stages"),
        ("wpipe", [[0, 1], [0, 1]], 4, "without replicas; solve with --schedule interleaved-1f1b"),
        ("wpipe", LOOP, 3, "needs at least 4 microbatches to an update, and 3 were asked for"),
        ("nothing", LINE[2], 4, "'nothing' cannot run; known: pipedream, pipedream-2bw"),
        ("spectrain", [[0]], 4, "predicts weights over .* this plan has 1 stage; solve with more"),
        ("pipeoptim", [[0, 1], [2]], 4, "so it needs stages without replicas"),
        ("xpipe", [[0, 1], [2]], 4, "so it needs stages without replicas, and stages have up to 2"),
        ("xpipe", LOOP, 4, "runs one stage per rank, and this plan has ranks with several"),
    ],
)
def test_plans_that_need_flushes_are_refused(schedule: str, ranks: Ranks, n: int, said: str):
    with pytest.raises(PlanError, match=said):
        rules_of(plan("zoo:mlp-tiny", ranks, num_microbatches=n), schedule)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"recompute": ("layer",)}, "no forward can run again for its backward; solve with"),
        ({"selective": ("layer",)}, "no forward can run again for its backward; solve with"),
        ({"optimizer_on_host": True}, "keeps it on the host; solve without --offload-optimizer"),
    ],
)
def test_predictions_are_refused_on_stages_that_cannot_have_them(stage: dict[str, Any], said: str):
    of = plan("zoo:mlp-tiny", LINE[2])
    changed = (of.stages[0], msgspec.structs.replace(of.stages[1], **stage))
    with pytest.raises(PlanError, match=said):
        rules_of(msgspec.structs.replace(of, stages=changed), "pipeoptim")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"backend": "torch"}, "flush at the end of every step; leave out --backend torch or"),
        ({"count_bytes": True}, "a separate step, which an asynchronous run does not have"),
    ],
)
def test_settings_that_need_a_flush_are_refused_before_anything_starts(
    option: dict[str, Any], said: str
):
    asked = RunSettings(model="zoo:mlp-tiny", steps=1, asynchronous="pipedream", **option)
    with pytest.raises(UsageError, match=said):
        check_settings(asked)


@pytest.mark.slow
def test_pipedream_refuses_weights_that_are_tied_across_stages(two_ranks: RankPool):
    for complaint in two_ranks.call(complaint_of, plan("zoo:gpt2-tiny", LINE[2]), "pipedream"):
        assert complaint.startswith("PlanError: ") and "'tokens.weight' is tied across" in complaint


def spectrain(k: int) -> tuple[Callable[[int, int], Guess], Callable[[int, int], Guess]]:
    """Chen et al.: s = floor(i/2) + k - i - 1 forward, floor(i/2) backward, on GPU i of k."""
    return (
        lambda i, m: (pipedream(k, i, m), i // 2 + k - i - 1),
        lambda i, m: (m, i // 2),
    )


def pipeoptim(k: int) -> tuple[Callable[[int, int], Guess], Callable[[int, int], Guess]]:
    """Guan et al.: s = D - rank - 1 forward, and the newest weights backward."""
    return lambda i, m: (pipedream(k, i, m), k - i - 1), lambda i, m: (m, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("spectrain", spectrain),
        pytest.param("pipeoptim", pipeoptim, marks=pytest.mark.long),
    ],
)
def test_your_own_loop_predicts_weights_as_by_hand(four_ranks: RankPool, name: str, rule: Any):
    of = plan("zoo:mlp-tiny", LINE[4])
    ranks = four_ranks.call(in_pipeline, of, name, 7, "momentum")
    assert_same(ranks, predicted_by_hand(of, 7, *rule(4)), 1e-11)


@pytest.mark.slow
def test_your_own_loop_refuses_optimizers_that_predict_nothing(two_ranks: RankPool):
    of = plan("zoo:mlp-tiny", LINE[2])
    for complaint in two_ranks.call(complaint_of, of, "spectrain", "sgd"):
        assert complaint.startswith(
            "UsageError: weights cannot be predicted from the state of SGD w"
        )


@pytest.mark.parametrize("name", ["pipedream", "wpipe", "spectrain"])
def test_weights_that_two_stages_share_are_refused_on_one_rank_too(name: str):
    rules = AsynchronousRules(RUNNABLE[name], Setting(2, 2))
    check_no_shared(rules, [["a"], ["b"]], [[0], [0]])
    with pytest.raises(PlanError, match="'a' is tied across stages on ranks 0; take pipedream-2bw"):
        check_no_shared(rules, [["a"], ["a", "b"]], [[0], [0]])
    check_no_shared(rules._replace(kind=TWO_BUFFERED), [["a"], ["a", "b"]], [[0], [1]])
