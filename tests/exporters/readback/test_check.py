"""Real frameworks read exports, and would build and run the plan."""

import importlib.metadata
import random
from collections.abc import Sequence

import pytest

import autopart.exporters.readback.check as readback
from autopart.errors import ExportRefused, UsageError
from autopart.exporters.exported import Exported
from autopart.exporters.readback.check import READERS, check_export
from autopart.exporters.readback.rebuilt import installed
from autopart.exporters.targets import export_plan
from autopart.records.check import Check
from autopart.records.plan import Plan
from tests.exporters.readback.conftest import Needs
from tests.support.exporters.language import language_plan, recomputing
from tests.support.sharded_plans import sharing
from tests.support.tensor_plans import in_groups

pytestmark = pytest.mark.filterwarnings("ignore")  # the frameworks warn on import


WHOLE_BACKWARDS = (
    ("gpipe", 1), ("1f1b", 1), ("eager-1f1b", 1), ("looped-bfs", 2), ("interleaved-1f1b", 3),
    ("hanayo", 2),
)  # fmt: skip
SCHEDULES = {
    "torchtitan": WHOLE_BACKWARDS,
    "megatron": (("1f1b", 1), ("interleaved-1f1b", 2), ("interleaved-1f1b", 3)),
    "deepspeed": (("1f1b", 1),),
    "automodel": WHOLE_BACKWARDS,
}
CASES = [
    (target, name, per_rank) for target, known in SCHEDULES.items() for name, per_rank in known
]
ALL_OR_NONE = ("torchtitan 0.2.2", "automodel 0.7.0")
"""Versions whose random plans recompute every layer or none."""
SINGLE_PARTS = ("torchtitan 0.3.0", "deepspeed 0.19.8")
"""Versions that recompute any layers except their products."""


def read_version(target: str) -> str:
    """The target, and the export version for the installed package."""
    reader = READERS[target]
    return f"{target} {installed(reader.package, tuple(reader.rebuilds))[1]}"


def random_plan(target: str, schedule: str, per_rank: int, seed: int) -> Plan:
    """An exportable plan with random cuts, ranks, replicas and recomputed blocks."""
    draw = random.Random(f"{target} {schedule} {seed}")
    version = read_version(target)
    num_ranks = draw.choice((2, 3, 4))
    counts = [draw.randint(1, 4) for _ in range(num_ranks * per_rank)]
    counts[0], counts[-1] = draw.randint(0, 4), draw.randint(0, 4)
    if version == "megatron 0.12":
        first, inner, last = (draw.randint(1, 4) for _ in range(3))
        counts = [first, *[inner] * (num_ranks - 2), last]
    microbatches = num_ranks * per_rank * draw.choice((1, 2, 3))
    plan = language_plan(counts, num_ranks, schedule, microbatches, draw.choice((1, 2)))
    plan = recomputing(plan, *random_blocks(draw, version, counts))
    whole = {layer for stage in plan.stages for layer in stage.recompute}
    if version in SINGLE_PARTS:
        left = [at for at in range(sum(counts)) if f"transformer.h.{at}" not in whole]
        return recomputing(plan, *(at for at in left if draw.random() < 0.4), policy="selective")
    if version.startswith("megatron") and not whole:
        return recomputing(plan, *range(sum(counts)), policy="selective")
    return plan


def random_blocks(draw: random.Random, version: str, counts: list[int]) -> list[int]:
    """Random blocks to recompute that the version can express."""
    if version in ALL_OR_NONE:
        return list(range(sum(counts))) if draw.random() < 0.5 else []
    if version.startswith("megatron"):
        starts = [sum(counts[:stage]) for stage in range(len(counts))]
        uniform, none = draw.randint(0, 4), draw.random() < 0.3
        n = [
            min(uniform, count) if version == "megatron 0.12" else draw.randint(0, count)
            for count in counts
        ]
        n = [0] * len(counts) if none else n
        return [start + at for start, many in zip(starts, n, strict=True) for at in range(many)]
    return [block for block in range(sum(counts)) if draw.random() < 0.4]


@pytest.mark.parametrize(("target", "schedule", "per_rank"), CASES)
def test_frameworks_rebuild_random_plans_layer_by_layer(
    needs: Needs, target: str, schedule: str, per_rank: int
) -> None:
    needs(target)
    if read_version(target) == "megatron 0.12" and per_rank > 1:
        pytest.skip("Megatron-Core 0.12 takes one stage per rank")
    for seed in range(12):
        checks = check_export(random_plan(target, schedule, per_rank, seed), target)
        assert [check for check in checks if not check.passed] == [], seed


def swapped(monkeypatch: pytest.MonkeyPatch, plan: Plan, other: Plan, target: str) -> list[Check]:
    """The checks that fail for `plan` when the framework reads the export of `other`."""

    def export_other(*_: object, **__: object) -> Exported:
        return export_plan(other, target, version=read_version(target).split()[1])

    monkeypatch.setattr(readback, "export_plan", export_other)
    return [check for check in check_export(plan, target) if not check.passed]


STAGED = [target for target, reader in READERS.items() if reader.has_stages]


@pytest.mark.parametrize("target", STAGED)
def test_the_check_fails_for_another_plans_export(
    needs: Needs, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(target)
    plan = language_plan([2, 3, 1])
    assert swapped(monkeypatch, plan, plan, target) == []
    (check,) = swapped(monkeypatch, plan, language_plan([3, 2, 1]), target)
    assert check.name == "layers" and "stage 0 has embedding, layers.0, layers.1, layers.2" in (
        check.detail
    )
    blocks = range(6) if read_version(target) in ALL_OR_NONE else (0, 2, 5)
    (check,) = swapped(monkeypatch, plan, recomputing(plan, *blocks), target)
    assert check.name == "recompute" and "layers.0, " in check.detail
    other = language_plan([2, 3, 1], num_microbatches=9)
    assert [c.name for c in swapped(monkeypatch, plan, other, target)] == ["orders"]


@pytest.mark.parametrize(
    ("target", "version", "chosen"),
    [("torchtitan", "0.3", (1, 4)), ("deepspeed", "", (1, 4)), ("megatron", "", range(6))],
)
def test_frameworks_read_back_selective_recompute(
    needs: Needs,
    target: str,
    version: str,
    chosen: Sequence[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs(target, version)
    plan = language_plan([2, 3, 1])
    asked = recomputing(plan, *chosen, policy="selective")
    recompute = check_export(asked, target)[2]
    words = f"0 units and parts of {len(chosen)} units, as planned"
    assert recompute == Check("recompute", True, words)
    for other in (plan, recomputing(plan, *chosen)):
        (check,) = swapped(monkeypatch, asked, other, target)
        listed = ", ".join(f"layers.{at}" for at in chosen)
        assert check == Check("recompute", False, f"differs for {listed}")


@pytest.mark.parametrize(
    ("counts", "schedule", "chosen"),
    [
        ([2, 4], "1f1b", (1, 3, 5)),
        ([2, 3, 1, 1], "interleaved-1f1b", (1, 3, 6)),
        ([1, 3], "1f1b", (3,)),
    ],
)
def test_torchtitan_0_2_recomputes_every_nth_layer(
    needs: Needs, counts: list[int], schedule: str, chosen: tuple[int, ...]
) -> None:
    needs("torchtitan", "0.2")
    plan = recomputing(language_plan(counts, 2, schedule), *chosen)
    assert [check for check in check_export(plan, "torchtitan") if not check.passed] == []


@pytest.mark.parametrize(
    ("target", "splits"), [("torchtitan", True), ("megatron", True), ("automodel", False)]
)
def test_frameworks_read_the_tensor_degree(
    needs: Needs, target: str, splits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(target)
    plan = language_plan([2, 3, 1])
    asked = in_groups(plan, 2, sequence_parallel=splits)
    *_, last = check_export(asked, target)
    name = "tensor degree 2 with sequence parallelism" if splits else "tensor degree 2"
    assert last == Check("tensor groups", True, f"{name}, as planned")
    for other in (in_groups(plan, 4, sequence_parallel=splits), plan):
        (check,) = swapped(monkeypatch, asked, other, target)
        assert check.name == "tensor groups"


@pytest.mark.parametrize("target", ["torchtitan", "automodel"])
@pytest.mark.parametrize(("replicas", "tensor"), [(1, 1), (2, 1), (2, 2)])
def test_frameworks_read_shard_and_replicate_degrees(
    needs: Needs, target: str, replicas: int, tensor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(target)
    plan = language_plan([2, 3, 1], replicas=replicas)
    splits = tensor > 1 and target == "torchtitan"
    asked, other = (
        sharing(plan, data, "zero2", reduce="step", tensor=tensor, sequence_parallel=splits)
        for data in (2, 4)
    )
    *_, last = check_export(asked, target)
    assert last.name == "sharded state" and last.passed and "2 processes" in last.detail
    (check,) = swapped(monkeypatch, asked, other, target)
    assert check.name == "sharded state" and "4 processes" in check.detail


@pytest.mark.parametrize("target", ["torchtitan", "automodel"])
def test_the_check_counts_processes(
    needs: Needs, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(target)
    asked, other = (language_plan([2, 1], replicas=replicas) for replicas in (2, 4))
    found = swapped(monkeypatch, asked, other, target)
    assert [check for check in found if check.name == "processes"] == [
        Check("processes", False, "8 processes, planned 4")
    ]


def test_megatron_refuses_a_layout_without_one_layer(
    needs: Needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("megatron", "0.16")
    plan = language_plan([2, 3, 1])
    files = dict(export_plan(plan, "megatron").files)
    files["autopart_megatron.sh"] = files["autopart_megatron.sh"].replace("t*3", "t*2")
    monkeypatch.setattr(readback, "export_plan", lambda *_, **__: Exported(files))
    with pytest.raises(AssertionError, match="Number of decoder layers"):
        check_export(plan, "megatron")


@pytest.mark.parametrize("target", READERS)
def test_a_missing_framework_or_version_is_wrong_usage(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    plan = language_plan([1, 1])
    if not READERS[target].has_stages:
        plan = sharing(language_plan([2], 1), 2, "zero3", reduce="step")
    monkeypatch.setattr(importlib.metadata, "version", nothing)
    with pytest.raises(UsageError, match=r"is not installed beside autopart: pip install"):
        check_export(plan, target)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.1")
    with pytest.raises(UsageError, match=r"0\.1 is installed, and exports are written for"):
        check_export(plan, target)


def test_targets_without_a_reader_and_refused_plans_raise() -> None:
    with pytest.raises(UsageError, match=r"exports to 'vllm' have no reader"):
        check_export(language_plan([1, 1]), "vllm")
    with pytest.raises(ExportRefused):
        check_export(language_plan([2]), "megatron")
