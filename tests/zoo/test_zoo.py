"""Built-in models: each builds, trains, and has its published size."""

import subprocess
import sys

import pytest
import torch

from autopart.errors import ModelError
from autopart.runtime.models.model import build_training_model, check_model, example_batch
from autopart.runtime.models.model_file import load_model
from autopart.zoo.catalogue import zoo_names, zoo_source

TINY = [name for name in zoo_names() if name.endswith("-tiny")]

PUBLISHED = {
    "gpt2-124m": 124_439_808,
    "gpt2-350m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "llama-1b": 1_235_814_400,
    "llama-8b": 8_030_261_248,
    "resnet-50": 25_557_032,
}


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_model_gives_a_finite_loss_and_a_gradient_to_every_parameter(name: str) -> None:
    source = zoo_source(name)
    model = build_training_model(source)
    batch = example_batch(source, 2)
    check_model(model, batch)
    loss = model(*batch)
    loss.backward()
    assert loss.isfinite()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_model_is_small_and_gives_the_same_loss_twice(name: str) -> None:
    source = zoo_source(name)
    model, batch = build_training_model(source), example_batch(source, 2)
    assert count(model) <= 10_000_000
    with torch.no_grad():
        assert torch.equal(model(*batch), model(*batch))


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_published_model_has_the_published_number_of_parameters(name: str) -> None:
    assert count(build_training_model(zoo_source(name), device="meta")) == PUBLISHED[name]


def test_gpt2_of_1_3b_has_24_blocks_of_width_2048() -> None:
    model = build_training_model(zoo_source("gpt2-1.3b"), device="meta").model
    assert len(model.blocks) == 24  # type: ignore[arg-type]
    assert model.get_parameter("tokens.weight").shape == (50257, 2048)
    assert 1.25e9 < count(model) < 1.35e9


@pytest.mark.parametrize("name", zoo_names())
def test_every_model_builds_on_meta_without_memory(name: str) -> None:
    model = build_training_model(zoo_source(name), device="meta", dtype="bfloat16")
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("gpt2-tiny", {"tokens.weight", "head.weight"}),
        ("encdec-tiny", {"source_tokens.weight", "target_tokens.weight", "head.weight"}),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_tied_weight_is_one_parameter_on_every_device(
    name: str, names: set[str], device: str
) -> None:
    model = build_training_model(zoo_source(name), device=device, dtype="bfloat16").model
    parameters = dict(model.named_parameters(remove_duplicate=False))
    assert len({id(parameters[n]) for n in names}) == 1


def test_the_skips_of_the_unet_reach_the_mirrored_decoder_level() -> None:
    model = build_training_model(zoo_source("unet-tiny")).model
    seen: dict[str, torch.Tensor] = {}
    model.encoder[0].register_forward_hook(  # type: ignore[index]
        lambda _module, _inputs, output: seen.update(skip=output)
    )
    model.decoder[-1].register_forward_hook(  # type: ignore[index]
        lambda _module, inputs, _output: seen.update(read=inputs[1])
    )
    model(torch.randn(1, 3, 48, 48))
    assert seen["skip"] is seen["read"]


def test_causal_models_do_not_look_ahead() -> None:
    for name in ("gpt2-tiny", "llama-tiny", "moe-tiny"):
        source = zoo_source(name)
        model = build_training_model(source).eval()
        ((ids,), _) = example_batch(source, 1)
        changed = ids.clone()
        changed[0, -1] = (changed[0, -1] + 1) % 1000
        outputs = [model.run_model((x,)) for x in (ids, changed)]
        before, after = [o[0] if isinstance(o, tuple) else o for o in outputs]
        torch.testing.assert_close(before[:, :-1], after[:, :-1])
        assert not torch.equal(before[:, -1], after[:, -1])


def test_padding_does_not_change_what_the_decoder_reads() -> None:
    source = zoo_source("encdec-tiny")
    model = build_training_model(source)
    inputs, _ = example_batch(source, 1)
    assert isinstance(inputs, dict)
    changed = torch.where(inputs["source_mask"], inputs["source"], 7)
    with torch.no_grad():
        before, after = (
            model.run_model({**inputs, "source": s}) for s in (inputs["source"], changed)
        )
    assert not torch.equal(inputs["source"], changed)
    torch.testing.assert_close(before, after)


def test_even_routing_has_a_balance_loss_of_one() -> None:
    from autopart.zoo.moe import balance_loss

    gates = torch.tensor([[[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]])
    assert balance_loss(torch.full((1, 2, 4), 0.25), gates).item() == pytest.approx(1.0)


@pytest.mark.slow
def test_the_loss_falls_under_training() -> None:
    for name in TINY:
        source = zoo_source(name)
        model, batch = build_training_model(source), example_batch(source, 2)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = model(*batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0], name


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ModelError,
        match=r"no example model 'gpt5'; did you mean gpt2-\w+\? known: gpt2-tiny, gpt2-124m",
    ):
        load_model("zoo:gpt5")


def test_listing_the_zoo_does_not_import_torch() -> None:
    code = "import sys, autopart.zoo.catalogue as zoo; zoo.zoo_names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=600).returncode == 0
