"""Megatron-Core makes the plan's context and expert groups, and has the demands that exports name."""

from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest

import autopart.exporters.readback.check as readback
from autopart.exporters.exported import Exported
from autopart.exporters.readback.check import check_export
from autopart.exporters.readback.rebuilt import framework_module
from autopart.exporters.targets import export_plan
from autopart.records.check import Check
from autopart.records.plan import Plan
from tests.exporters.readback.conftest import Needs
from tests.exporters.readback.test_check import swapped
from tests.exporters.test_megatron_groups import paired, with_samples
from tests.support.exporters.language import language_plan
from tests.support.tensor_plans import in_groups

pytestmark = pytest.mark.filterwarnings("ignore")  # the framework warns on import


def grouped(kind: str, degree: int, tensor: int, replicas: int) -> Plan:
    """A plan whose ranks have so many context or expert GPUs."""
    plan = with_samples(language_plan([2, 2, 2], replicas=replicas), 8)
    context, expert = (degree, 1) if kind == "context" else (1, degree)
    return in_groups(plan, tensor, sequence_parallel=tensor > 1, context=context, expert=expert)


@pytest.mark.parametrize("kind", ["context", "expert"])
@pytest.mark.parametrize(("tensor", "replicas"), [(1, 1), (1, 2), (2, 1), (2, 3)])
def test_megatron_makes_the_groups_of_the_plan(
    needs: Needs, kind: str, tensor: int, replicas: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("megatron")
    plan = grouped(kind, 4, tensor, replicas)
    checks = check_export(plan, "megatron")
    assert all(check.passed for check in checks), checks
    told = f"{3 * replicas * tensor} groups of 4 GPUs, as planned"
    assert checks[-1] == Check(f"{kind} groups", True, told)
    other = grouped(kind, 2, tensor, replicas)
    (check,) = swapped(monkeypatch, plan, other, "megatron")
    assert check.name == f"{kind} groups"
    second = ", ".join(str(place * tensor) for place in range(4))
    assert check.detail.endswith(f"the first of GPUs {second}")


@pytest.mark.parametrize(("context", "expert"), [(2, 2), (2, 4), (4, 2)])
@pytest.mark.parametrize(("tensor", "replicas"), [(1, 1), (1, 2), (2, 3)])
def test_megatron_makes_both_kinds_of_groups_together(
    needs: Needs, context: int, expert: int, tensor: int, replicas: int
) -> None:
    """Each in as many groups as the plan has. Those of experts are consecutive, as a note of the export says."""
    needs("megatron")
    plan = with_samples(language_plan([2, 2, 2], replicas=replicas), 8)
    plan = in_groups(plan, tensor, sequence_parallel=tensor > 1, context=context, expert=expert)
    checks = check_export(plan, "megatron")
    assert all(check.passed for check in checks), checks
    gpus = 3 * replicas * tensor * context * expert
    assert [(check.name, check.detail) for check in checks[-2:]] == [
        (f"{kind} groups", f"{gpus // degree} groups of {degree} GPUs, as planned")
        for kind, degree in (("context", context), ("expert", expert))
    ]


def test_the_check_finds_a_process_with_the_whole_groups_samples(
    needs: Needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("megatron")
    plan = grouped("expert", 2, 1, 2)

    def export_whole(*given: Any, **named: Any) -> Exported:
        exported = export_plan(*given, **named)
        files = {
            name: text.replace("--micro-batch-size 4", "--micro-batch-size 8")
            for name, text in exported.files.items()
        }
        return exported._replace(files=files)

    monkeypatch.setattr(readback, "export_plan", export_whole)
    failed = [check for check in check_export(plan, "megatron") if not check.passed]
    assert [check.name for check in failed] == ["orders"]


def test_megatrons_processes_have_two_chunks_each_of_2c(needs: Needs) -> None:
    needs("megatron", "0.16")
    torch = framework_module("torch")
    utils = framework_module("megatron.core.utils")
    c = 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        for rank in range(c):
            group = SimpleNamespace(size=lambda: c, rank=lambda rank=rank: rank)
            batch = {"tokens": torch.arange(4 * c)[None]}
            own = utils.get_batch_on_this_cp_rank(batch, group)["tokens"][0].tolist()
            chunks = (rank, 2 * c - 1 - rank)
            assert own == list(chain.from_iterable((2 * at, 2 * at + 1) for at in chunks))
        with pytest.raises(RuntimeError, match="invalid for input of size 10"):
            utils.get_batch_on_this_cp_rank({"tokens": torch.arange(10)[None]}, group)


def test_only_transformer_engine_has_attention_with_a_context_degree(needs: Needs) -> None:
    needs("megatron")
    made = framework_module("megatron.core.transformer.transformer_config").TransformerConfig(
        num_layers=1, hidden_size=8, num_attention_heads=2, context_parallel_size=2
    )
    attention = framework_module("megatron.core.transformer.dot_product_attention")
    with pytest.raises(AssertionError, match="only supported by TEDotProductAttention"):
        attention.DotProductAttention(made, 1, None, "self")


def test_megatron_runs_the_plans_overlapped_pairs(
    needs: Needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own warm-up is one forward longer then, and each later forward runs beside a backward."""
    needs("megatron", "0.16")
    plan = paired()
    checks = check_export(plan, "megatron")
    assert all(check.passed for check in checks), checks
    assert any(";" in order for order in plan.orders)

    def export_without(*given: Any, **named: Any) -> Exported:
        exported = export_plan(*given, **named)
        words = "    --overlap-moe-expert-parallel-comm\n"
        files = {name: text.replace(words, "") for name, text in exported.files.items()}
        return exported._replace(files=files)

    monkeypatch.setattr(readback, "export_plan", export_without)
    failed = [check.name for check in check_export(plan, "megatron") if not check.passed]
    assert failed == ["orders"]
