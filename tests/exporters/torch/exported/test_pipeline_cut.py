"""Stages cut anywhere compute the model's loss and gradients."""

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch

from autopart.runtime.capture.capture import capture_model
from autopart.runtime.models.model import build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from tests.support.exporters.exported import import_export
from tests.support.exporters.one_process import cut, run_chain
from tests.support.exporters.plans import make_plan
from tests.support.places import MODELS

# GPT-2, the U-Net, T5 and the perceptron run in real processes in test_pipeline_training.
FAST = ["zoo:llama-tiny", "zoo:resnet-tiny", "zoo:encdec-tiny", "zoo:moe-tiny", "hf_bert"]
MORE = ["zoo:gpt2-tiny", "zoo:unet-tiny", "zoo:mlp-tiny", "hf_gpt2", "hf_llama", "hf_t5", *FAST]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "seed"),
    [(m, 0) for m in FAST[-3:]]
    + [pytest.param(m, 0, marks=pytest.mark.long) for m in FAST[:-3]]
    + [pytest.param(m, 1, marks=pytest.mark.long) for m in MORE],
)
def test_stages_cut_at_random_layers_compute_the_models_loss_and_gradients(
    model: str, seed: int
) -> None:
    if model.startswith("hf_"):
        pytest.importorskip("transformers")
        model = str(MODELS / f"{model}.py")
    source = load_model(model)
    training, batch = build_training_model(source), example_batch(source, 3)
    names = [layer.name for layer in capture_model(training, batch).layers]
    layers = cut_at_random(names, seed)
    plan = make_plan(layers, [(index,) for index in range(len(layers))], len(layers))
    pipeline = import_export(plan)

    twin = build_training_model(source)
    expected = twin(*batch)
    expected.backward()
    loss = run_chain(pipeline, training, batch)

    torch.testing.assert_close(loss, expected)
    of_twin = dict(twin.named_parameters())
    for name, parameter in training.named_parameters():
        torch.testing.assert_close(parameter.grad, of_twin[name].grad, rtol=1e-5, atol=1e-6)


def cut_at_random(names: Sequence[str], seed: int) -> list[Sequence[str]]:
    generator = random.Random(seed)
    count = generator.choice((2, 3, 4))
    cuts = [0, *sorted(generator.sample(range(1, len(names)), count - 1)), len(names)]
    return [names[a:b] for a, b in pairwise(cuts)]


@pytest.mark.slow
def test_another_model_raises_when_it_is_cut() -> None:
    layers = [["tokens", "blocks.99"], ["head", "loss"]]
    pipeline = import_export(make_plan(layers, [(0,), (1,)], 2))
    source = load_model("zoo:gpt2-tiny")
    training = build_training_model(source)
    with pytest.raises(ValueError, match=r"the model has no layer 'blocks.99'"):
        cut(pipeline, training, example_batch(source, 1))
