"""A model file becomes a training model, or one line that names its fault and the place."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from autopart.errors import ModelError
from autopart.runtime.models.model import (
    TrainingModel,
    build_training_model,
    check_model,
    example_batch,
)
from autopart.runtime.models.model_file import load_model
from autopart.zoo.source import ModelSource
from tests.support.places import MODELS

HUGGING_FACE = MODELS

GOOD = """
import torch
from torch import nn

def build_model():
    return nn.Linear(3, 2)

def example_inputs(microbatch_size):
    return torch.randn(microbatch_size, 3)

def example_target(microbatch_size):
    return torch.randn(microbatch_size, 2)

def loss_fn(output, target):
    return (output - target).square().mean()
"""

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(text: str, name: str = "model.py") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write_file


def trouble(text: str) -> str:
    """Return the message that refuses a model. It must be one line."""
    with pytest.raises(ModelError) as caught:
        source = load_model(text)
        model = build_training_model(source)
        check_model(model, example_batch(source, 4))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Good files


def test_a_model_file_trains(write: Write) -> None:
    source = load_model(write(GOOD))
    model, batch = build_training_model(source), example_batch(source, 5)
    check_model(model, batch)
    (inputs, target) = batch
    assert isinstance(inputs, tuple) and inputs[0].shape == (5, 3) and target.shape == (5, 2)
    output = model.model(inputs[0])
    torch.testing.assert_close(model(*batch), (output - target).square().mean())
    assert model.training
    assert [name for name, _ in model.model.named_parameters()] == ["weight", "bias"]


def test_another_function_of_the_file_is_chosen_after_a_colon(write: Write) -> None:
    path = write(GOOD + "\ndef build_wide():\n    return nn.Linear(3, 2, bias=False)\n")
    assert "bias" not in dict(
        build_training_model(load_model(f"{path}:build_wide")).model.named_parameters()
    )


def test_a_function_of_a_package_is_found_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pack_of_models").mkdir()
    (tmp_path / "pack_of_models" / "__init__.py").touch()
    (tmp_path / "pack_of_models" / "linear.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = load_model("pack_of_models.linear:build_model")
    assert isinstance(build_training_model(source).model, nn.Linear)
    assert source.name == "pack_of_models.linear:build_model"


def test_a_file_imports_its_siblings_even_inside_a_function(write: Write) -> None:
    write("WIDTH = 3", "sibling_width.py")
    write("HEIGHT = 2", "sibling_height.py")
    path = write(
        GOOD.replace("import torch\n", "import torch\nfrom sibling_width import WIDTH\n").replace(
            "    return nn.Linear(3, 2)",
            "    from sibling_height import HEIGHT\n    return nn.Linear(WIDTH, HEIGHT)",
        )
    )
    assert build_training_model(load_model(path)).model.weight.shape == (2, 3)


@pytest.mark.slow
def test_namesakes_beside_two_model_files_are_kept_apart(tmp_path: Path) -> None:
    """A second file once got the first one's `widths.py`, silently, from the loaded modules."""
    text = GOOD.replace("import torch\n", "import torch\nfrom widths import OUT\n", 1)
    for folder, out in (("a", 2), ("b", 7)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "widths.py").write_text(f"OUT = {out}")
        (tmp_path / folder / "model.py").write_text(text.replace("(3, 2)", "(3, OUT)"))
        model = build_training_model(load_model(str(tmp_path / folder / "model.py"))).model
        assert model.weight.shape == (out, 3)


def test_dataclasses_work_in_a_model_file(write: Write) -> None:
    path = write(
        "from __future__ import annotations\nfrom dataclasses import dataclass, field\n"
        "@dataclass\nclass Shape:\n    sizes: list[int] = field(default_factory=list)\n" + GOOD
    )
    load_model(path)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5"])
def test_hugging_face_models_return_their_own_loss(name: str) -> None:
    pytest.importorskip("transformers")
    source = load_model(str(HUGGING_FACE / f"hf_{name}.py"))
    model, (inputs, target) = build_training_model(source), example_batch(source, 2)
    assert target is None and isinstance(inputs, dict)
    check_model(model, (inputs, target))
    torch.testing.assert_close(model(inputs, target), model.model(**inputs).loss)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda loss: loss,
        lambda loss: {"loss": loss, "logits": torch.ones(2)},
        lambda loss: (loss, torch.ones(2)),
        lambda loss: [loss],
    ],
)
def test_a_models_own_loss_is_found_where_models_put_it(
    wrap: Callable[[torch.Tensor], object],
) -> None:
    class Own(nn.Module):
        def forward(self, x: torch.Tensor) -> object:
            return wrap(x.sum())

    assert TrainingModel(Own())((torch.ones(3),)).item() == 3.0


# Seeds, types and devices


def test_equal_seeds_build_equal_weights_and_leave_the_random_state_alone(write: Write) -> None:
    text = "import random\nimport numpy as np\n" + GOOD.replace(
        "return nn.Linear(3, 2)",
        "model = nn.Linear(3, 2)\n"
        "    nn.init.constant_(model.bias, random.random() + np.random.rand())\n"
        "    return model",
    )
    source = load_model(write(text))
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first, second = (build_training_model(source, seed=1).model for _ in range(2))
    example_batch(source, 2, seed=5)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)
    other = build_training_model(source, seed=2).model
    assert not torch.equal(first.weight, other.weight) and not torch.equal(first.bias, other.bias)


def test_the_example_batch_is_the_same_for_the_same_seed(write: Write) -> None:
    source = load_model(write(GOOD))
    (first,), (same,), (other,) = (example_batch(source, 2, seed=s)[0] for s in (3, 3, 4))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_only_floating_tensors_change_their_type() -> None:
    pytest.importorskip("transformers")
    source = load_model(str(HUGGING_FACE / "hf_bert.py"))
    inputs, _ = example_batch(source, 2, dtype="bfloat16", device="meta")
    assert isinstance(inputs, dict)
    assert {(x.dtype, x.device.type) for x in inputs.values()} == {(torch.int64, "meta")}
    loss = build_training_model(source, dtype="float64")(example_batch(source, 2)[0])
    assert loss.dtype == torch.float64


def test_on_meta_ties_survive_though_the_builder_names_another_device(write: Write) -> None:
    path = write(
        GOOD.replace(
            "return nn.Linear(3, 2)",
            "model = nn.Sequential(nn.Linear(3, 3, device='cpu'), nn.Linear(3, 3, device='cpu'))\n"
            "    model[1].weight = model[0].weight\n"
            "    model.register_buffer('scale', torch.ones(1, device='cpu'))\n"
            "    return model",
        )
    )
    model = build_training_model(load_model(path), device="meta").model
    assert model[0].weight is model[1].weight and model[0].weight.is_meta and model.scale.is_meta


def test_a_trial_forward_leaves_buffers_and_random_state_alone(write: Write) -> None:
    source = load_model(
        write(
            GOOD.replace(
                "nn.Linear(3, 2)",
                "nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2), nn.Dropout(0.5))",
            )
        )
    )
    model = build_training_model(source)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    state = torch.get_rng_state()
    check_model(model, example_batch(source, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


# Bad files


def test_a_missing_file_is_named() -> None:
    assert trouble("nowhere/model.py").startswith("nowhere/model.py: there is no such file; write")
    assert "no such file" in trouble("nowhere.py:build")
    assert "no such file" in trouble("model")


def test_a_file_that_is_no_python_is_refused(write: Write, tmp_path: Path) -> None:
    assert "not a Python file" in trouble(write("{}", "plan.json"))
    assert "not a Python file" in trouble(str(tmp_path))


@pytest.mark.parametrize("text", ["", ":", "model.py:", ":build", "model.py:a-b"])
def test_a_text_that_names_nothing_is_refused_with_the_spellings(text: str) -> None:
    assert "zoo:NAME" in trouble(text)


@pytest.mark.slow
def test_a_missing_builder_is_answered_with_the_functions_there_are(write: Write) -> None:
    path = write(GOOD.replace("build_model", "make"))
    message = trouble(path)
    assert f"{path}: there is no build_model() in it (it defines make, example_inputs" in message
    assert f"try {path}:FUNCTION" in message
    assert "there is no other()" in trouble(f"{path}:other")


@pytest.mark.slow
def test_missing_or_half_defined_examples_are_named(write: Write) -> None:
    assert "no example_inputs(microbatch_size)" in trouble(
        write(GOOD.replace("example_inputs", "e"))
    )
    assert "no loss_fn(output, target)" in trouble(write(GOOD.replace("loss_fn", "l")))
    assert "build_model is of type int" in trouble(write("build_model = 3"))


def test_a_file_that_raises_on_import_shows_its_error_and_its_line(
    write: Write, tmp_path: Path
) -> None:
    write("def half(x):\n    return x / 0\n", "sibling_that_raises.py")
    path = write("import sibling_that_raises\n\nsibling_that_raises.half(1)\n")
    before, search = set(sys.modules), list(sys.path)
    message = trouble(path)
    assert message.startswith("model.py: importing it raised ZeroDivisionError: division by zero (")
    assert message.endswith("sibling_that_raises.py:2)")
    assert set(sys.modules) == before and sys.path == search


def test_a_syntax_error_shows_its_line(write: Write) -> None:
    assert "SyntaxError: '(' was never closed" in (message := trouble(write("x = 1\ny = (\n")))
    assert message.endswith("model.py:2)")


def test_a_script_that_exits_on_import_is_an_error_of_the_file(write: Write) -> None:
    assert "raised SystemExit: 2" in trouble(write("import sys\nsys.exit(2)\n"))


def test_a_missing_dependency_is_the_files_own_error(write: Write) -> None:
    message = trouble(write("import a_module_nobody_has\n" + GOOD))
    assert "ModuleNotFoundError: No module named 'a_module_nobody_has'" in message
    assert trouble("a_module_nobody_has:f").startswith("a_module_nobody_has: there is no module")
    assert "there is no module 'json.nothing'" in trouble("json.nothing:f")


def test_a_builder_that_raises_shows_its_error_and_its_line(write: Write) -> None:
    path = write(GOOD.replace("return nn.Linear(3, 2)", "raise ValueError('bad\\n  width')"))
    message = trouble(path)
    assert message.startswith(f"{path}: build_model() raised ValueError: bad width (")
    assert message.endswith("model.py:6)")


@pytest.mark.slow
def test_a_builder_that_returns_no_module_is_told_its_result(write: Write) -> None:
    assert "build_model() returned None; return" in trouble(
        write(GOOD.replace("return nn.L", "nn.L"))
    )
    message = trouble(write(GOOD.replace("return nn.Linear(3, 2)", "return nn.Linear(3, 2), 1")))
    assert "build_model() returned a tuple of (Linear, int); return" in message


def test_a_builder_that_reads_values_on_meta_is_told_of_cpu(write: Write) -> None:
    path = write(GOOD.replace("nn.Linear(3, 2)", "nn.Linear(3, int(torch.ones(1).item()))"))
    with pytest.raises(
        ModelError, match=r"build_model\(\) raised .*model.py:6\); build it with --device cpu"
    ):
        build_training_model(load_model(path), device="meta")


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("None", "returned None; return a tuple"),
        ("3", "returned a value of type int; return a tuple"),
        ("(1, 'a')", "returned a tuple of (int, str), which contains no tensor"),
        ("{1: torch.ones(2)}", "returned a value of type dict; return a tuple"),
        ("[]", "contains no tensor"),
        ("unknown_name", "raised NameError: name 'unknown_name' is not defined"),
    ],
)
def test_values_that_are_no_inputs_are_refused(write: Write, returned: str, said: str) -> None:
    message = trouble(write(GOOD.replace("torch.randn(microbatch_size, 3)", returned)))
    assert "example_inputs(4)" in message and said in message


def test_a_target_that_raises_shows_its_line(write: Write) -> None:
    message = trouble(write(GOOD.replace("return torch.randn(microbatch_size, 2)", "return 1 / 0")))
    assert "example_target(4) raised ZeroDivisionError" in message and "model.py:12" in message


def test_inputs_that_do_not_fit_show_the_models_own_error_and_line(write: Write) -> None:
    text = GOOD.replace("return nn.Linear(3, 2)", "return Net()") + (
        "\nclass Net(nn.Linear):\n    def __init__(self):\n        super().__init__(5, 2)\n"
        "    def forward(self, x):\n        return super().forward(x)\n"
    )
    message = trouble(write(text))
    assert "the model's forward raised RuntimeError: mat1 and mat2 shapes cannot be" in message
    assert f"model.py:{text.count(chr(10))})" in message
    assert message.endswith("check that example_inputs fits the model's forward")


@pytest.mark.slow
def test_the_line_of_a_library_is_shown_where_the_file_has_none() -> None:
    pytest.importorskip("transformers")
    path = str(HUGGING_FACE / "hf_gpt2.py")
    source = load_model(path)
    inputs, _ = example_batch(source, 2)
    assert isinstance(inputs, dict)
    beyond = {name: ids.repeat(1, 9) for name, ids in inputs.items()}
    with pytest.raises(ModelError, match=r"IndexError.*modeling_gpt2.py:\d+"):
        check_model(build_training_model(source), (beyond, None))


def test_a_missing_loss_is_reported_with_the_models_output(write: Write) -> None:
    text = GOOD[: GOOD.index("def example_target")]
    message = trouble(write(text))
    assert (
        "the model returns a tensor of shape (4, 2) and type float32, which carries no loss"
        in message
    )
    assert "define loss_fn(output, target)" in message


def test_a_hugging_face_model_without_labels_is_told_of_labels() -> None:
    pytest.importorskip("transformers")
    source = load_model(str(HUGGING_FACE / "hf_gpt2.py"))
    inputs, _ = example_batch(source, 2)
    assert isinstance(inputs, dict)
    inputs.pop("labels")
    with pytest.raises(ModelError, match=r"CausalLMOutput.*carries no loss; .*\(labels\)"):
        check_model(build_training_model(source), (inputs, None))


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (
            "(output - target).square()",
            "(4, 2) and type float32, not a floating scalar; return its mean",
        ),
        ("output.argmax()", "a tensor of shape () and type int64, not a floating scalar"),
        ("0.5", "loss_fn returned a value of type float; return a scalar tensor"),
        ("target.mean()", "the loss depends on no parameter that requires a gradient"),
        ("output.item()", "loss_fn raised RuntimeError"),
    ],
)
def test_a_loss_that_cannot_be_trained_is_refused(write: Write, loss: str, said: str) -> None:
    assert said in trouble(write(GOOD.replace("(output - target).square().mean()", loss)))


def test_a_model_without_trained_parameters_is_refused(write: Write) -> None:
    path = write(GOOD.replace("nn.Linear(3, 2)", "nn.Linear(3, 2).requires_grad_(False)"))
    assert "has no parameter that requires a gradient" in trouble(path)


def test_an_unknown_dtype_is_answered_with_the_known_ones(write: Write) -> None:
    with pytest.raises(ModelError, match=r"unknown dtype 'fp8'; known: float32, bfloat16"):
        build_training_model(load_model(write(GOOD)), dtype="fp8")


def test_a_source_made_by_hand_needs_no_file() -> None:
    source = ModelSource(
        "mine", lambda: nn.Linear(2, 1), lambda n: torch.ones(n, 2), None, lambda y, _: y.mean()
    )
    check_model(build_training_model(source), example_batch(source, 3))
