"""Hugging Face Accelerate checks and runs an exported device_map."""

import json

import pytest
import torch

from autopart.exporters.targets import export_plan
from tests.exporters.readback.conftest import Needs
from tests.support.exporters.language import language_plan


def test_accelerate_finds_every_parameter_and_runs_the_model(needs: Needs) -> None:
    needs("device-map")
    accelerate = pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    plan = language_plan([2, 1])
    devices = json.loads(export_plan(plan, "device-map").files["autopart_device_map.json"])
    sizes = {"n_layer": 3, "n_head": 2, "n_embd": 16, "vocab_size": 32, "n_positions": 8}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()

    accelerate.utils.check_device_map(model, devices)
    del devices["transformer.h.1"]
    with pytest.raises(ValueError, match=r"transformer\.h\.1"):
        accelerate.utils.check_device_map(model, devices)

    ids = torch.arange(8)[None]
    expected = model(ids).logits
    everywhere = dict.fromkeys((*devices, "transformer.h.1", "transformer.drop"), "cpu")
    placed = accelerate.dispatch_model(model, everywhere, force_hooks=True)
    torch.testing.assert_close(placed(ids).logits, expected)
