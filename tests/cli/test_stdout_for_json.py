"""Under --json stdout holds one document, whatever the model prints."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.places import MODELS

MODEL = f"{MODELS / 'odd_forwards.py'}:printing"
PRINTED = {"build", "forward", "child"}


def autopart(folder: Path, *words: str, **variables: str) -> tuple[dict[str, Any], set[str]]:
    """Run a command in `folder`; return its JSON document and the words on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "autopart", *words, "--json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), set(done.stderr.split())


class Printed(NamedTuple):
    """What a profile of the printing model wrote."""

    folder: Path
    document: dict[str, Any]
    said: set[str]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Printed:
    """A folder with a profile and a plan of the printing model for one rank."""
    folder = tmp_path_factory.mktemp("printing")
    counts = ("--microbatch-size", "2", "--repeats", "1", "--warmup", "0")
    profiled = autopart(folder, "profile", MODEL, *counts, "-o", "profile.json")
    autopart(folder, "solve", "--gpus", "1", "--global-batch", "4", "-o", "plan.json")
    return Printed(folder, *profiled)


@pytest.mark.slow
def test_prints_of_the_model_and_its_child_processes_do_not_reach_stdout(printed: Printed):
    assert printed.document["model"] == MODEL and printed.said >= PRINTED


@pytest.mark.slow
def test_prints_of_a_model_on_one_device_do_not_reach_stdout(printed: Printed):
    asked = ("--one-device", "--device", "cpu", "--steps", "1")
    document, said = autopart(printed.folder, "validate", "plan.json", MODEL, *asked)
    assert document["one_device"] is True and said >= PRINTED


@pytest.mark.slow
def test_prints_of_a_model_on_a_rank_do_not_reach_stdout(printed: Printed):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    document, said = autopart(printed.folder, "run", "plan.json", MODEL, "--steps", "1", **world)
    assert document["num_ranks"] == 1 and said >= PRINTED
