"""Exactly the planned layers run again in backward."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from autopart.runtime.models.model import build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from tests.support.exporters.clamped_model import CLAMPED
from tests.support.exporters.exported import check_training, import_export
from tests.support.exporters.odd_model import ODD
from tests.support.exporters.one_process import cut, run_chain, run_stages
from tests.support.exporters.plans import make_plan, with_policies
from tests.support.runtime.rank_pool import RankPool

BLOCKS = [f"blocks.{index}" for index in range(8)]
GPT2 = [["tokens", "positions", *BLOCKS[:3]], [*BLOCKS[3:], "norm", "head", "loss"]]


class Counting(TorchDispatchMode):
    """Counts each layer's clamps, and all products with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.clamps: dict[int, int] = {}
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.clamp.default:
            top = kwargs["max"] if "max" in kwargs else args[2]
            self.clamps[int(top) - 100] = self.clamps.get(int(top) - 100, 0) + 1
        self.products += func is torch.ops.aten.addmm.default
        return func(*args, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
def test_exactly_the_planned_layers_run_again(tmp_path: Path, schedule: str) -> None:
    (tmp_path / "clamped.py").write_text(CLAMPED)
    source = load_model(str(tmp_path / "clamped.py"))
    training, twin = build_training_model(source), build_training_model(source)
    batch = example_batch(source, 4)
    names = [f"layers.{index}" for index in range(6)]
    plan = make_plan([names[:3], names[3:]], [(0,), (1,)], 2, schedule)
    plan = with_policies(plan, recompute=("layers.1", "layers.3"), selective=("layers.4",))
    pipeline = import_export(plan)
    stages = cut(pipeline, training, batch)
    with Counting() as counting:
        loss = run_stages(stages, batch)
        for stage in stages:
            stage.weight_gradients()()
    expected = twin(*batch)
    expected.backward()

    assert counting.clamps == {0: 1, 1: 2, 2: 1, 3: 2, 4: 2, 5: 1}
    assert counting.products == 2 * 6 + 2 * 2  # twice in whole layers, once in selective ones
    torch.testing.assert_close(loss, expected)
    ours, theirs = dict(training.named_parameters()), dict(twin.named_parameters())
    for name in theirs:
        torch.testing.assert_close(ours[name].grad, theirs[name].grad)
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(dict(training.named_buffers())[name], buffer)


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "ranks"), [("1f1b", 2), ("zbv", 1)])
def test_recomputed_layers_train_as_the_plain_model(
    two_ranks: RankPool, schedule: str, ranks: int
) -> None:
    layers = GPT2 if ranks == 2 else [GPT2[0][:3], GPT2[0][3:], GPT2[1][:3], GPT2[1][3:]]
    places = [(0,), (1,)] if ranks == 2 else [(0,), (1,), (1,), (0,)]
    plan = make_plan(layers, places, 4, schedule)
    plan = with_policies(
        plan, recompute=("blocks.0", "blocks.4"), selective=("blocks.2", "blocks.7")
    )
    check_training(two_ranks, plan, "zoo:gpt2-tiny")


@pytest.mark.slow
def test_an_input_that_changes_before_the_second_run_raises(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    source = load_model(str(tmp_path / "odd.py"))
    layers = [["frozen.0"], ["layers.0", "layers.1", "layers.2", "layers.3", "act"]]
    plan = with_policies(make_plan(layers, [(0,), (1,)], 2), recompute=("act",))
    pipeline = import_export(plan)
    training = build_training_model(source)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation"):
        run_chain(pipeline, training, example_batch(source, 2))
