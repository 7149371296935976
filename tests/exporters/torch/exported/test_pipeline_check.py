"""Exports run autograd functions as they are written, and find their own errors."""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from autopart.errors import RunError
from autopart.exporters.targets import export_plan
from autopart.exporters.torch.self_check import check_export
from autopart.records.plan import Plan
from autopart.runtime.models.model import build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from tests.support.exporters.exported import import_export, import_files
from tests.support.exporters.one_process import cut, run_stages
from tests.support.exporters.plans import make_plan, with_policies
from tests.support.places import MODELS, ROOT
from tests.support.runtime.rank_pool import RankPool

BACKWARDS, DRAWING = str(MODELS / "backwards.py"), str(MODELS / "drawing.py")
ODD = str(MODELS / "odd_forwards.py")
CUT = [["blocks.0", "blocks.1"], ["blocks.2", "blocks.3", "head", "loss"]]
DIFFUSION = [
    ["enter", "blocks.0", "blocks.1"],
    ["blocks.2", "blocks.3", "leave"],
]


def plan(
    layers: Sequence[Sequence[str]] = CUT, schedule: str = "1f1b", **policies: tuple[str, ...]
) -> Plan:
    return with_policies(make_plan(layers, [(0,), (1,)], 4, schedule), **policies)


def differences(of: Plan, model: str) -> list[float]:
    """Largest differences of the loss and of each gradient, after one microbatch in one process."""
    pipeline = import_export(of)
    source = load_model(model)
    training, twin = build_training_model(source), build_training_model(source)
    batch = example_batch(source, 2)
    stages = cut(pipeline, training, batch)
    loss, expected = run_stages(stages, batch), twin(*batch)
    for stage in stages:
        stage.weight_gradients()()
    expected.backward()
    pairs = zip(training.parameters(), twin.parameters(), strict=True)
    gradients = [
        [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for parameter in pair
        ]
        for pair in pairs
    ]
    apart = [(ours - theirs).abs().max().item() for ours, theirs in gradients]
    return [abs(loss.item() - expected.item()), *apart]


@pytest.mark.parametrize(
    ("schedule", "policies"),
    [
        ("1f1b", {}),
        ("1f1b", {"recompute": ("blocks.1", "blocks.2")}),
        ("1f1b", {"selective": ("blocks.1", "blocks.2")}),
        ("zb-h1", {"recompute": ("blocks.1",)}),
    ],
)
def test_autograd_functions_keep_their_own_backwards(
    schedule: str, policies: dict[str, tuple[str, ...]]
) -> None:
    assert max(differences(plan(CUT, schedule, **policies), BACKWARDS)) <= 1e-6


CHECKPOINTED = [["first", "blocks.0"], ["blocks.1", "blocks.2", "blocks.3", "last", "loss"]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # the plain model's
@pytest.mark.parametrize("policies", [{}, {"recompute": ("blocks.1", "blocks.2")}])
@pytest.mark.parametrize(
    "builder",
    [
        "each_block",
        "each_block_reentrant",
        "no_gradient_reentrant",
        "dict_reentrant",
        "tuple_reentrant",
    ],
)
def test_checkpoints_of_the_model_give_way_to_the_plan(
    builder: str, policies: dict[str, tuple[str, ...]]
) -> None:
    model = f"{MODELS / 'checkpointed.py'}:{builder}"
    assert max(differences(plan(CHECKPOINTED, **policies), model)) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_hooks_of_parameters_change_their_gradients(schedule: str) -> None:
    assert max(differences(plan(CUT, schedule), BACKWARDS + ":parameter_hooked")) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("builder", "said"),
    [
        ("in_place", "its autograd function Doubling changes an argument"),
        ("assigning", "it assigns buffer 'mean', which a graph loses: write into it"),
        ("hooked", "it registers a hook for the gradient of a tensor"),
        ("module_hooked", "a module has a backward hook"),
        ("calling", "its autograd function Calling takes a "),
    ],
)
def test_a_backward_that_a_graph_loses_is_refused(builder: str, said: str) -> None:
    layers = [["blocks.0"], ["blocks.1", "head", "loss"]]
    with pytest.raises(ValueError, match=f"^the model cannot be captured: {said}") as caught:
        differences(plan(layers), f"{BACKWARDS}:{builder}")
    assert "\n" not in str(caught.value)
    assert (
        torch.autograd.Function.__dict__["apply"].__func__.__module__ == "torch.autograd.function"
    )


def checked(rank: int, files: Mapping[str, str], model: str) -> str:
    """The check's sentence, or its error, on this rank."""
    with TemporaryDirectory() as folder:
        import_files(files, Path(folder))
    check = importlib.import_module("pipeline_check")
    try:
        return check.check(check.load_model(model), rank, torch.device("cpu"))
    except check.CheckError as error:
        return f"error: {error}"


def changed(files: Mapping[str, str], before: str, after: str) -> dict[str, str]:
    """The files with one place changed."""
    (name,) = [name for name, text in files.items() if before in text]
    assert files[name].count(before) == 1, before
    return {**files, name: files[name].replace(before, after)}


def sentence(pool: RankPool, of: Plan, model: str, *changes: tuple[str, str]) -> str:
    """The sentence of a checked export whose text is changed. All ranks say the same."""
    files = dict(export_plan(of, "torch").files)
    for before, after in changes:
        files = changed(files, before, after)
    said, other = pool.call(checked, files, model)
    assert said == other
    return said


@pytest.mark.slow
def test_an_export_with_autograd_functions_is_equal_to_the_plain_model(
    two_ranks: RankPool,
) -> None:
    said = sentence(two_ranks, plan(recompute=("blocks.1",)), BACKWARDS)
    assert said.startswith("equal to the plain model: loss ") and "tolerance 1e-05" in said


@pytest.mark.slow
def test_a_builder_of_one_module_cannot_be_checked(two_ranks: RankPool) -> None:
    layers = [["enter", "blocks.0", "blocks.1"], ["blocks.2", "blocks.3", "leave"]]
    said = sentence(two_ranks, plan(layers), ODD + ":one_for_ever")
    assert said.startswith("error: build_model returns the same module in each call"), said


@pytest.mark.slow
def test_an_export_draws_the_plain_models_random_numbers(two_ranks: RankPool) -> None:
    layers = ("blocks.1", "blocks.2")
    for policies in ({}, {"recompute": layers}, {"selective": layers}):
        said = sentence(two_ranks, plan(DIFFUSION, **policies), DRAWING + ":diffusion")
        assert (
            "random numbers were seeded alike in both (bernoulli_ 48, randn_like 4 times)" in said
        )


BROKEN = {
    "no autograd functions": (
        "function.apply = classmethod(as_one_operation)",
        "function.apply = self.apply",
    ),
    "the sum of losses": ("return loss.sum() / NUM_MICROBATCHES", "return loss.sum()"),
    "a gradient that is dropped": (
        "return tuple(gradient.contiguous() for gradient in gradients)",
        "return tuple(0.0 * gradient.contiguous() for gradient in gradients)",
    ),
    "a microbatch for another": (
        "torch.stack([leaves[place] for leaves in named])",
        "torch.stack([named[0][place] for _ in named])",
    ),
    "another loss": (
        "loss += part.detach()",
        "loss += 1.001 * part.detach()",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_export_fails_its_check(two_ranks: RankPool, name: str) -> None:
    said = sentence(two_ranks, plan(), BACKWARDS, BROKEN[name])
    assert said.startswith("error: the export differs from the plain model: "), said


@pytest.mark.slow
def test_missing_sums_and_random_numbers_of_second_runs_fail_the_check(
    two_ranks: RankPool,
) -> None:
    unsummed = ("    for group, parameters in stages.shared:", "    for group, parameters in ():")
    whole = [["blocks.0", "blocks.1", "blocks.2", "blocks.3", "head", "loss"]]
    replicated = make_plan(whole, [(0, 1)], 4)
    assert sentence(two_ranks, replicated, BACKWARDS).startswith("equal to the plain model")
    assert sentence(two_ranks, replicated, BACKWARDS, unsummed).startswith(
        "error: the export differs"
    )
    forgets = ("use_reentrant=False, c", "use_reentrant=False, preserve_rng_state=False, c")
    of = plan(DIFFUSION, recompute=("blocks.1", "blocks.2"))
    said = sentence(two_ranks, of, DRAWING + ":diffusion", forgets)
    assert said.startswith("error: the export differs"), said


SIGNS = [["signs", "values"], ["gate", "last", "loss"]]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_zeros_in_place_of_no_gradient_fail_the_check(two_ranks: RankPool, schedule: str) -> None:
    """Weight decay would move weights that the plain model leaves alone."""
    model = f"{MODELS / 'awkward.py'}:signs"
    assert sentence(two_ranks, plan(SIGNS, schedule), model).startswith("equal to the plain model")
    zeros = ('node.meta["has_gradient"])', "fake.requires_grad)")
    said = sentence(two_ranks, plan(SIGNS, schedule), model, zeros)
    assert "the gradient of signs.weight, zeros in place of none, on rank 0" in said


def written(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder / "pipeline.py"


@pytest.mark.slow
def test_the_written_script_checks_itself(tmp_path: Path) -> None:
    files = export_plan(plan(), "torch").files
    script = written(tmp_path, files)
    assert check_export(script, Path(BACKWARDS)).startswith("equal to the plain model: loss ")
    written(tmp_path, changed(files, *BROKEN["the sum of losses"]))
    with pytest.raises(RunError, match="the export differs from the plain model") as caught:
        check_export(script, Path(BACKWARDS))
    assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match=r"there is no such Python file; name it with --check"):
        check_export(script, tmp_path / "gone.py")


def test_a_missing_model_is_told_before_any_rank_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    import_export(plan())
    check = importlib.import_module("pipeline_check")
    monkeypatch.setattr(check, "spawn", lambda *_: pytest.fail("a rank starts"))
    with pytest.raises(check.CheckError, match="there is no such Python file"):
        check._on_this_machine("gone.py", "cpu")


SIGNALLING = """
import os, pathlib, signal, tempfile, time
tempfile.mkdtemp()
pathlib.Path("pid").write_text(str(os.getpid()))
os.kill(os.getppid(), signal.{name})
time.sleep(600)
"""
CHECKING = """
import pathlib
from autopart.exporters.torch.self_check import check_export
check_export(pathlib.Path("pipeline.py"), pathlib.Path("model.py"))
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_check_with_its_processes_and_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "pipeline.py").write_text(SIGNALLING.format(name=name))
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", CHECKING],
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == -getattr(signal, name)
    # A killed process whose parent is gone stays until the system reaps it; a busy machine takes a while.
    process, until = int((tmp_path / "pid").read_text()), time.monotonic() + 120
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < until:
            os.kill(process, 0)
            time.sleep(0.05)
    assert list((tmp_path / "tmp").iterdir()) == []
