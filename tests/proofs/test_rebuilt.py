"""Exports read by the real frameworks: what they would build and run is what was planned."""

import importlib.metadata
import random

import pytest

import autopart.proofs as proofs
from autopart.certificate import Check
from autopart.errors import ExportRefused, UsageError
from autopart.exporters import Exported, export_plan
from autopart.plan import Plan
from autopart.proofs import PROOFS, check_export
from autopart.proofs.rebuilt import installed
from tests.exporters.language import language_plan, recomputing
from tests.proofs.conftest import Needs

pytestmark = pytest.mark.filterwarnings("ignore")  # the frameworks' own, while they are imported


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
"""What recomputes every layer or none."""


def read_version(target: str) -> str:
    """The target, and the version that exports are written in for what is installed."""
    proof = PROOFS[target]
    return f"{target} {installed(proof.package, tuple(proof.readers))[1]}"


def random_plan(target: str, schedule: str, per_rank: int, seed: int) -> Plan:
    """A plan with any cuts, numbers of ranks, replicas and recomputed blocks that can be exported."""
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
    return recomputing(plan, *random_blocks(draw, version, counts))


def random_blocks(draw: random.Random, version: str, counts: list[int]) -> list[int]:
    """Blocks to recompute, of those that the version can be told."""
    if version in ALL_OR_NONE:
        return list(range(sum(counts))) if draw.random() < 0.5 else []
    if version.startswith("megatron"):
        starts = [sum(counts[:stage]) for stage in range(len(counts))]
        uniform = draw.randint(0, 4)
        n = [
            min(uniform, count) if version == "megatron 0.12" else draw.randint(0, count)
            for count in counts
        ]
        return [start + at for start, many in zip(starts, n, strict=True) for at in range(many)]
    return [block for block in range(sum(counts)) if draw.random() < 0.4]


@pytest.mark.parametrize(("target", "schedule", "per_rank"), CASES)
def test_random_plans_are_rebuilt_layer_by_layer(
    needs: Needs, target: str, schedule: str, per_rank: int
) -> None:
    needs(target)
    if read_version(target) == "megatron 0.12" and per_rank > 1:
        pytest.skip("Megatron-Core 0.12 takes one stage a rank")
    for seed in range(12):
        checks = check_export(random_plan(target, schedule, per_rank, seed), target)
        assert [check for check in checks if not check.passed] == [], seed


def swapped(monkeypatch: pytest.MonkeyPatch, plan: Plan, other: Plan, target: str) -> list[Check]:
    """The checks that fail where the export of `plan` is that of `other`."""

    def export_other(*_: object, **__: object) -> Exported:
        return export_plan(other, target, version=read_version(target).split()[1])

    monkeypatch.setattr(proofs, "export_plan", export_other)
    return [check for check in check_export(plan, target) if not check.passed]


@pytest.mark.parametrize("target", PROOFS)
def test_an_export_of_another_plan_is_found_out(
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
    if target != "megatron":  # whose arguments carry the microbatches through the global batch only
        other = language_plan([2, 3, 1], num_microbatches=9)
        assert [c.name for c in swapped(monkeypatch, plan, other, target)] == ["orders"]


def test_megatrons_layout_drops_a_layer_where_an_argument_is_wrong(
    needs: Needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("megatron", "0.16")
    plan = language_plan([2, 3, 1])
    files = dict(export_plan(plan, "megatron").files)
    files["autopart_megatron.sh"] = files["autopart_megatron.sh"].replace("t*3", "t*2")
    monkeypatch.setattr(proofs, "export_plan", lambda *_, **__: Exported(files))
    with pytest.raises(AssertionError, match="Number of decoder layers"):
        check_export(plan, "megatron")


@pytest.mark.parametrize("target", PROOFS)
def test_a_framework_that_is_not_there_is_asked_for(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", nothing)
    with pytest.raises(UsageError, match=r"is not installed beside autopart: pip install"):
        check_export(language_plan([1, 1]), target)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.1")
    with pytest.raises(UsageError, match=r"0\.1 is installed, and exports are written for"):
        check_export(language_plan([1, 1]), target)


def test_targets_without_a_package_and_refused_plans_say_so() -> None:
    with pytest.raises(UsageError, match=r"exports to 'vllm' are not rebuilt"):
        check_export(language_plan([1, 1]), "vllm")
    with pytest.raises(ExportRefused):
        check_export(language_plan([2]), "megatron")
