"""The training script in docs/runtime.md runs as printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from autopart.records.plan import Plan, save_plan
from tests.support.models.regression import build_model, example_inputs, example_target, loss_fn
from tests.support.places import ROOT
from tests.support.runtime.orders import backward_first
from tests.support.runtime.plans import capture, plan_for

MODEL = "tests/support/models/regression.py"
STEP = re.compile(r"step (\d+): loss ([\d.]+), gradient norm ([\d.]+)")


def script() -> str:
    text = (ROOT / "docs" / "runtime.md").read_text()
    found = re.search(r"```py\n(# train\.py\n.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


def plan_of(ranks: list[list[int]], cuts: list[float]) -> Plan:
    orders = backward_first(ranks, 4)
    return plan_for(MODEL, capture(MODEL), cuts, ranks=ranks, orders=orders)


def trained(folder: Path, num_ranks: int) -> list[tuple[int, float, float]]:
    """Step, loss and norm, as the script prints them."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    ended = subprocess.run(
        [sys.executable, *command, "train.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    return [(int(n), float(a), float(b)) for n, a, b in STEP.findall(ended.stdout)]


def by_the_plain_model(steps: int) -> list[tuple[int, float, float]]:
    torch.manual_seed(0)
    model, done = build_model(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        total = 0.0
        for part in range(2):
            torch.manual_seed(2 * step + part)
            loss = loss_fn(model(example_inputs(8)), example_target(8)) / 2
            loss.backward()
            total += loss.item()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        optimizer.step()
        optimizer.zero_grad()
        done.append((step, total, norm))
    return done


def test_the_script_is_shorter_than_sixty_lines():
    assert len(script().splitlines()) < 60


@pytest.mark.slow
def test_it_trains_as_the_plain_model_and_continues_under_another_plan(tmp_path: Path):
    (tmp_path / "train.py").write_text(script())
    (tmp_path / "model.py").write_text((ROOT / MODEL).read_text())
    save_plan(plan_of([[0], [1], [0]], [0.3, 0.7]), tmp_path / "plan.json")
    done = trained(tmp_path, 2)
    save_plan(plan_of([[0]], []), tmp_path / "plan.json")
    done += trained(tmp_path, 1)
    for mine, plain in zip(done, by_the_plain_model(8), strict=True):
        assert mine == pytest.approx(plain, rel=1e-3)
