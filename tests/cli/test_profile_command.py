import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from autopart.cli.profile_command import default_name
from autopart.records.profile import Device, Source, load_profile
from tests.support.places import SCHEMAS
from tests.support.samples import sample_profile
from tests.support.small_model_file import MODEL

Cli = Callable[..., object]


@pytest.fixture
def quick(cli: Cli, folder: Path) -> Cli:
    """`autopart profile` with few repeats, beside the model file `model.py`."""
    (folder / "model.py").write_text(MODEL)
    return lambda *arguments: cli("profile", *arguments, "--warmup", "0", "--repeats", "2")


def test_a_model_file_becomes_a_profile_named_after_model_device_and_size(
    quick: Cli, folder: Path
) -> None:
    outcome = quick("model.py", "--microbatch-size", "3")
    assert outcome.code == 0, outcome.err
    profile = load_profile("model-cpu-mb3.json")
    assert (profile.microbatch_size, profile.device.threads) == (3, 1)
    assert "profile written to model-cpu-mb3.json" in outcome.out
    assert "compared with the whole model" in outcome.out
    for layer in profile.graph.layers:
        assert layer.name in outcome.out


@pytest.mark.slow
def test_the_document_has_all_layers_and_nothing_else_is_on_stdout(
    quick: Cli, folder: Path
) -> None:
    outcome = quick("model.py", "--json", "-o", "p.json")
    schema = SCHEMAS / "profile-summary.json"
    jsonschema.validate(outcome.document, json.loads(schema.read_text()))
    profile = load_profile("p.json")
    said = outcome.document["layers"]
    assert [layer["name"] for layer in said] == [layer.name for layer in profile.graph.layers]
    assert sum(layer["share"] for layer in said) == pytest.approx(1)
    assert outcome.document["num_params"] == 8 * 8 + 8 + 8 * 4 + 4
    assert "compared with the whole model" in outcome.err


@pytest.mark.slow
def test_a_profile_on_meta_is_marked_analytic(quick: Cli, folder: Path) -> None:
    outcome = quick("model.py", "--device", "meta", "--gpu", "h100-sxm")
    assert outcome.code == 0, outcome.err
    assert "analytic" in outcome.out.splitlines()[0]
    assert load_profile("model-h100-sxm-analytic-mb1.json").method == "analytic"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["absent.py"], 1, "absent.py"),
        (["zoo:gpt9"], 1, "gpt9"),
        (["model.py:build_other"], 1, "build_other"),
        (["model.py", "--device", "meta"], 2, "--gpu"),
        (["model.py", "--device", "meta", "--gpu", "z100"], 1, "unknown GPU 'z100'"),
        (["model.py", "--microbatch-size", "0"], 2, "--microbatch-size"),
        (["model.py", "--dtype", "int8"], 2, "--dtype"),
    ],
)
def test_a_model_that_cannot_be_profiled_is_refused_in_one_line(
    quick: Cli, folder: Path, arguments: list[str], code: int, words: str
) -> None:
    outcome = quick(*arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert words in outcome.err
    assert [path.name for path in folder.glob("*.json")] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("nn.Linear(8, 4)", "nn.Linear(8, 1 // 0)"), ["model.py:5", "ZeroDivisionError"]),
        (("import torch\n", "import torch_not_there\n"), ["model.py:1", "torch_not_there"]),
        (("return nn.Sequential", "return str"), ["build_model"]),
        (("microbatch_size, 8", "microbatch_size, 9"), ["model.py"]),
        (("def build_model", "def build_modle"), ["build_model"]),
    ],
)
def test_a_model_file_that_fails_shows_its_own_error(
    quick: Cli, folder: Path, change: tuple[str, str], words: list[str]
) -> None:
    (folder / "model.py").write_text(MODEL.replace(*change))
    outcome = quick("model.py")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    for word in words:
        assert word in outcome.err


def test_a_profile_never_replaces_a_file_in_another_format(quick: Cli, folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    outcome = quick("model.py", "-o", "notes.txt")
    assert outcome.code == 1
    assert "notes.txt" in outcome.err
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("model", "device", "method", "name"),
    [
        ("zoo:gpt2-tiny", Device(kind="cpu", name="Some CPU"), "measured", "gpt2-tiny-cpu-mb2"),
        ("models/net.py:large", Device(kind="cpu", name="x"), "measured", "net-large-cpu-mb2"),
        ("pkg.nets:big", Device(kind="cpu", name="x"), "measured", "pkg.nets-big-cpu-mb2"),
        (
            "net.py",
            Device(kind="cuda", name="NVIDIA H100 80GB HBM3"),
            "measured",
            "net-NVIDIA-H100-80GB-HBM3-mb2",
        ),
        ("net.py", Device(kind="meta", name="l40s"), "analytic", "net-l40s-analytic-mb2"),
    ],
)
def test_the_default_file_name_has_model_device_and_microbatch_size(
    model: str, device: Device, method: str, name: str
) -> None:
    source = Source(model=model, graph_hash="", num_params=0, software={})
    profile = sample_profile(source=source, device=device, method=method)
    assert default_name(profile) == f"{name}.json"


@pytest.mark.slow
def test_tensor_degrees_become_variants_and_bad_ones_one_line(quick: Cli, folder: Path) -> None:
    outcome = quick("model.py", "--tensor", "1,2", "-o", "p.json")
    assert outcome.code == 0, outcome.err
    (variant,) = load_profile("p.json").variants
    assert (variant.group.tensor, variant.group.sequence_parallel) == (2, False)
    wrong = quick("model.py", "--tensor", "2,x")
    assert wrong.err == "error: --tensor 2,x: give degrees such as 1,2,4,8\n"
