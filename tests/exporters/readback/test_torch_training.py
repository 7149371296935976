"""torchtitan and NeMo AutoModel train exported plans like the unsplit model, on two processes."""

from pathlib import Path

import msgspec
import pytest

from tests.exporters.readback.conftest import Needs
from tests.support.exporters.language import language_plan, recomputing
from tests.support.readback.ranks import run_ranks
from tests.support.readback.trained import assert_same, assert_sharded


@pytest.mark.parametrize(
    ("counts", "schedule", "recomputed", "selective"),
    [
        ([1, 2], "1f1b", (0, 2), ()),
        ([1, 1, 2, 1], "interleaved-1f1b", (), ()),
        ([2, 1, 1, 1], "looped-bfs", (0, 1, 4), (2,)),
        ([1, 2], "1f1b", (0,), (1, 2)),
    ],
)
def test_torchtitan_trains_and_recomputes_as_planned(
    needs: Needs,
    tmp_path: Path,
    counts: list[int],
    schedule: str,
    recomputed: tuple[int, ...],
    selective: tuple[int, ...],
) -> None:
    needs("torchtitan", "0.3")
    plan = recomputing(language_plan(counts, 2, schedule, 4), *recomputed)
    plan = recomputing(plan, *selective, policy="selective")
    run_ranks("train_torchtitan", plan, "torchtitan", tmp_path)
    once, layers = plan.num_microbatches, range(sum(counts))
    # Norms run again under both policies, the five products under the first only. Each has two in backward.
    forwards = {str(n): once * (1 + (n in (*recomputed, *selective))) for n in layers}
    starts = [sum(counts[:stage]) for stage in range(0, len(counts), 2)]
    first = [n for s, start in enumerate(starts) for n in range(start, start + counts[2 * s])]
    products = {"products": once * 5 * sum(3 + (n in recomputed) for n in first)}
    assert_same(tmp_path, forwards | products)


@pytest.mark.parametrize(
    ("counts", "schedule", "zero1"),
    [([1, 2], "1f1b", True), ([1, 1, 2, 1], "interleaved-1f1b", True), ([1, 2], "1f1b", False)],
)
def test_torchtitan_trains_two_replicas(
    needs: Needs, tmp_path: Path, counts: list[int], schedule: str, zero1: bool
) -> None:
    """Each replica has microbatches of its own. With ZeRO-1 it has a shard of each matrix between steps."""
    needs("torchtitan", "0.3")
    plan = language_plan(counts, 2, schedule, 4, replicas=2)
    training = msgspec.structs.replace(plan.training, zero1=zero1)
    run_ranks(
        "train_torchtitan",
        msgspec.structs.replace(plan, training=training),
        "torchtitan",
        tmp_path,
    )
    assert_same(tmp_path, dict.fromkeys(map(str, range(sum(counts))), 4))
    assert_sharded(tmp_path, 2 if zero1 else 1)


@pytest.mark.parametrize(
    ("counts", "schedule", "recomputes"),
    [([1, 2], "1f1b", True), ([1, 1, 2, 1], "interleaved-1f1b", False)],
)
def test_automodel_trains_and_recomputes_as_planned(
    needs: Needs, tmp_path: Path, counts: list[int], schedule: str, recomputes: bool
) -> None:
    needs("automodel")
    layers = range(sum(counts))
    plan = language_plan(counts, 2, schedule, 4)
    run_ranks(
        "train_automodel",
        recomputing(plan, *layers) if recomputes else plan,
        "automodel",
        tmp_path,
    )
    once = plan.num_microbatches
    assert_same(tmp_path, {str(n): once * (1 + recomputes) for n in layers})
