"""A model's `tp_plan`: which parameters its entries name, and which entries are refused."""

from pathlib import Path

import pytest
from torch import nn

from autopart.errors import ModelError
from autopart.runtime.models.model import build_training_model
from autopart.runtime.models.model_file import load_model
from autopart.runtime.models.tensor_plan import weight_styles
from tests.support.places import MODELS


class Model(nn.Module):
    """Two blocks, and a head that is tied to the table."""

    def __init__(self) -> None:
        super().__init__()
        names = ("up", "down")
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(4, 4) for name in names}) for _ in range(2)
        )
        self.tokens, self.head = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)
        self.head.weight = self.tokens.weight


def test_a_pattern_names_parameters_or_modules_and_the_nearest_entry_counts() -> None:
    plan = {"blocks.*.up.bias": "replicate", "blocks.*.up": "colwise", "blocks.1.down": "rowwise"}
    assert weight_styles(Model(), plan, "model.py") == {
        "blocks.0.up.weight": "colwise",
        "blocks.0.up.bias": "replicate",
        "blocks.1.up.weight": "colwise",
        "blocks.1.up.bias": "replicate",
        "blocks.1.down.weight": "rowwise",
        "blocks.1.down.bias": "rowwise",
    }


def test_a_tied_parameter_is_named_by_any_of_its_names() -> None:
    assert weight_styles(Model(), {"head": "replicate"}, "model.py") == {
        "tokens.weight": "replicate"
    }


def test_the_files_entries_win_over_those_that_the_model_carries() -> None:
    model = Model()
    model._tp_plan = {  # pyright: ignore[reportAttributeAccessIssue]
        "blocks.*.up": "colwise_gather_output",
        "blocks.*.down": "rowwise",
        "blocks.*": "a style of later versions",
        "vision.*": "colwise",
    }
    styles = weight_styles(model, {"blocks.0.up": "replicate"}, "model.py")
    assert styles["blocks.0.up.weight"] == "replicate"
    assert styles["blocks.1.up.weight"] == "colwise"
    assert styles["blocks.1.down.weight"] == "rowwise"
    assert "tokens.weight" not in styles


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("blocks.*.upp", "near names: blocks.*.up"),
        ("block.7.down.weight", "near names: blocks.*.down.weight"),
        ("zzz", "parameters have names as in state_dict()"),
        ("blocks", "near names: blocks"),
    ],
)
def test_an_entry_that_names_no_parameter_is_refused_with_near_names(
    pattern: str, said: str
) -> None:
    with pytest.raises(ModelError) as caught:
        weight_styles(Model(), {pattern: "colwise"}, "model.py")
    line = str(caught.value)
    assert line.startswith(f"model.py: tp_plan has '{pattern}', which names no parameter; ")
    assert said in line and "\n" not in line


def test_an_unknown_style_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match="the style 'columns'; known: colwise, rowwise, replicate"):
        weight_styles(Model(), {"head": "columns"}, "model.py")


def file_with(folder: Path, plan: str) -> str:
    """The path of a model file with a `tp_plan`."""
    path = folder / "model.py"
    path.write_text((MODELS / "dropout.py").read_text() + f"\n\ntp_plan = {plan}\n")
    return str(path)


def test_a_model_file_has_a_plan(tmp_path: Path) -> None:
    source = load_model(file_with(tmp_path, '{"blocks.*.up": "replicate"}'))
    styles = build_training_model(source).weight_styles
    assert {name for name, style in styles.items() if style == "replicate"} == {
        f"blocks.{block}.up.{kind}" for block in range(4) for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("plan", ["['blocks.*.up']", "{'blocks.*.up': 1}", "print"])
def test_a_plan_of_another_form_is_refused(tmp_path: Path, plan: str) -> None:
    with pytest.raises(ModelError, match="tp_plan is no dict of texts"):
        load_model(file_with(tmp_path, plan))


@pytest.mark.slow
def test_hugging_faces_llama_carries_a_plan() -> None:
    pytest.importorskip("transformers")
    styles = build_training_model(load_model(str(MODELS / "hf_llama.py"))).weight_styles
    assert styles["model.layers.0.self_attn.q_proj.weight"] == "colwise"
    assert styles["model.layers.3.mlp.down_proj.weight"] == "rowwise"
