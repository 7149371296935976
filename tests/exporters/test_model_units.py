"""A plan's layers become the units that frameworks never cut."""

import msgspec
import pytest

from autopart.errors import ExportRefused, UsageError
from autopart.exporters.model_units import parse_renaming, units_of
from autopart.records.plan import Plan
from tests.support.exporters.language import language_plan, recomputing
from tests.support.exporters.plans import make_plan


def plan_of(*stages: list[str]) -> Plan:
    return make_plan(stages, [(index,) for index in range(len(stages))], 4)


def refusal(plan: Plan, *renamings: str) -> str:
    with pytest.raises(ExportRefused) as caught:
        units_of(plan, [parse_renaming(text) for text in renamings])
    return str(caught.value)


def units(plan: Plan, *renamings: str) -> list[tuple[str, ...]]:
    return [stage.units for stage in units_of(plan, [parse_renaming(text) for text in renamings])]


@pytest.mark.parametrize(
    ("embedding", "block", "norm", "head"),
    [
        ("tokens", "blocks.{}", "norm", "head"),
        ("transformer.wte", "transformer.h.{}", "transformer.ln_f", "lm_head"),
        ("model.embed_tokens", "model.layers.{}", "model.norm", "lm_head"),
        ("tok_embeddings", "layers.{}", "norm", "output"),
        ("embed", "h.{}", "norm", "head"),
    ],
)
def test_the_usual_names_are_known(embedding: str, block: str, norm: str, head: str) -> None:
    plan = plan_of([embedding, block.format(0)], [block.format(1), norm, head, "loss"])
    assert units(plan) == [("embedding", "layers.0"), ("layers.1", "norm", "head")]


def test_parts_of_a_block_are_one_unit() -> None:
    plan = plan_of(["wte", "h.0.attn", "h.0.mlp"], ["h.1.attn", "h.1.mlp", "h.1.mlp@1", "lm_head"])
    assert units(plan) == [("embedding", "layers.0"), ("layers.1", "head")]


def test_a_renaming_wins_over_the_rules() -> None:
    plan = plan_of(["patches", "stage.0"], ["stage.1", "classifier"])
    renamed = units(plan, "patches=embedding", "stage.{i}=layers.{i}", "classifier=head")
    assert renamed == [("embedding", "layers.0"), ("layers.1", "head")]
    vision = units(plan, "patches=vision_encoder", "stage.{i}=layers.{i}", "classifier=head")
    assert vision[0] == ("vision_encoder", "layers.0")


@pytest.mark.parametrize("text", ["a", "=b", "a=", "h.{i}=layers", "h=layers.{i}", "{i}.{i}=a.{i}"])
def test_an_incomplete_renaming_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match=r"renaming|on both sides"):
        parse_renaming(text)


def test_an_unknown_name_is_refused_with_a_renaming_to_try() -> None:
    message = refusal(plan_of(["wte", "mixer"], ["h.0", "lm_head"]))
    assert "layer 'mixer'" in message and "--map 'mixer=layers.0'" in message


def test_a_cut_inside_a_block_is_refused_with_the_layers_to_join() -> None:
    message = refusal(plan_of(["wte", "h.0.attn"], ["h.0.mlp", "lm_head"]))
    assert "cuts 'layers.0'" in message and "--same-stage h.0.attn,h.0.mlp" in message


def test_two_stacks_are_refused() -> None:
    message = refusal(plan_of(["wte", "encoder.block.0"], ["decoder.block.0", "lm_head"]))
    assert "'encoder.block.0' and 'decoder.block.0' would both be 'layers.0'" in message


def test_layers_out_of_order_or_missing_are_refused() -> None:
    assert "runs layers.1 where the target runs layers.0" in refusal(
        plan_of(["wte", "h.1"], ["h.0", "lm_head"])
    )
    assert "runs layers.2 where the target runs layers.1" in refusal(
        plan_of(["wte", "h.0"], ["h.2", "lm_head"])
    )
    assert "in this order" in refusal(plan_of(["wte", "h.0", "lm_head"], ["h.1", "ln_f"]))


def test_a_loss_away_from_the_head_is_refused() -> None:
    assert "has only the loss" in refusal(plan_of(["wte", "h.0", "lm_head"], ["loss"]))
    assert "--pin loss=1" in refusal(plan_of(["wte", "loss"], ["h.0", "lm_head"]))


def test_a_partly_recomputed_block_is_refused() -> None:
    assert units_of(recomputing(language_plan([2, 2]), 0, 3))[1].recompute == ("layers.3",)
    plan = plan_of(["wte", "h.0.attn", "h.0.mlp"], ["h.1", "lm_head"])
    stage = msgspec.structs.replace(plan.stages[0], recompute=("h.0.attn",))
    message = refusal(msgspec.structs.replace(plan, stages=(stage, plan.stages[1])))
    assert "recomputes 'layers.0' but not its layer 'h.0.mlp'" in message
