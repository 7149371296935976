"""The main job on every example model: profile, solve, verify, run against the plain model."""

import contextlib
import gc
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from autopart.cli.main import exit_code
from autopart.zoo.catalogue import zoo_names
from tests.support.long_tests import long_tests
from tests.support.places import MODELS

pytestmark = [
    pytest.mark.slow,
    # A job takes some 25 s of processor time, in this process and in two ranks. A busy machine must
    # not end it.
    pytest.mark.timeout(1200),
]

TINY = [name for name in zoo_names() if name.endswith("-tiny")]


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    """Run one command line and return its JSON document."""
    capsys.readouterr()
    with older_garbage_kept():
        code = exit_code([*arguments, "--json"])
    out, err = capsys.readouterr()
    if code != 0:
        pytest.fail(complaint(arguments, code, out, err), pytrace=False)
    return json.loads(out)


@contextlib.contextmanager
def older_garbage_kept() -> Iterator[None]:
    """Collections in this block leave older objects alone.

    Garbage of earlier tests, such as an open file, warns when it is collected. Warnings are errors,
    and would count against the command that runs then.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def complaint(arguments: tuple[str, ...], code: int, out: str, err: str) -> str:
    """All that a failed command said. Its error stands first, before warnings and progress."""
    lines = err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    first = " ".join(errors) or "no error was told"
    line = shlex.join(["autopart", *arguments])
    return "\n".join([f"{first} (exit code {code})", line, "stderr:", err, "stdout:", out])


def main_job(
    capsys: pytest.CaptureFixture[str], folder: Path, model: str, *demands: str
) -> dict[str, object]:
    profile, plan = str(folder / "profile.json"), str(folder / "plan.json")
    command(capsys, "profile", model, "--microbatch-size", "2", "--repeats", "2", "-o", profile)
    ranks = ("--gpus", "2", "--stages", "2", "--global-batch", "8")
    command(capsys, "solve", "--profile", profile, *ranks, *demands, "-o", plan)
    command(capsys, "verify", plan, "--profile", profile)
    run = ("run", plan, model, "--local", "--steps", "2", "--check", "--timeout", "600")
    return command(capsys, *run)


def test_a_failed_command_tells_its_error_first_and_then_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = (
        r"^error: absent.json: there is no such file.* \(exit code 1\)\nautopart show absent.json\n"
    )
    with pytest.raises(pytest.fail.Exception, match=said):
        command(capsys, "show", "absent.json")


def assert_equal_to_the_plain_model(result: dict[str, object]) -> None:
    check = result["check"]
    assert isinstance(check, dict)
    assert check["num_parameters"] > 0
    # The run itself checks the parameters (docs/runtime.md).
    for kind in ("losses", "gradients"):
        assert 0.0 <= check[kind] <= 1e-5, f"{kind} in {check}"


@pytest.mark.long  # scripts/quickstart does the main job for GPT-2, and its test is a slow one
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("name", TINY)
def test_the_main_job_on_a_built_in_model(
    name: str, schedule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = main_job(capsys, tmp_path, f"zoo:{name}", "--schedule", schedule)
    assert_equal_to_the_plain_model(result)


def test_the_main_job_at_a_microbatch_size_that_was_scaled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = main_job(capsys, tmp_path, "zoo:mlp-tiny", "--microbatch-size", "1,4")
    assert result["microbatch_size"] in (1, 4)
    assert_equal_to_the_plain_model(result)


@pytest.mark.parametrize("name", [*long_tests("hf_gpt2", "hf_llama", "hf_t5"), "hf_bert"])
def test_the_main_job_on_a_hugging_face_model(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    result = main_job(capsys, tmp_path, str(MODELS / f"{name}.py"))
    assert_equal_to_the_plain_model(result)
