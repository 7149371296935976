"""All example models and four Hugging Face models, trained in a pipeline and checked against the
plain model: two schedules, uneven cuts, replicas, two precisions."""

from functools import cache

import pytest

from autopart.records.run_result import CheckResult
from autopart.runtime.engine.run_settings import RunSettings
from tests.support.long_tests import long_tests
from tests.support.runtime.on_ranks import run
from tests.support.runtime.plans import capture, plan_for
from tests.support.runtime.rank_pool import RankPool

pytestmark = pytest.mark.slow

ZOO = ("gpt2", "llama", "resnet", "unet", "encdec", "moe", "mlp")
HUGGING_FACE = ("hf_gpt2", "hf_llama", "hf_bert", "hf_t5")
MODELS = [f"zoo:{name}-tiny" for name in ZOO] + [
    f"tests/support/models/{n}.py" for n in HUGGING_FACE
]


def often(*names: str) -> list[object]:
    """The models with such names; with the others these are long tests."""
    return [m if any(n in m for n in names) else long_tests(m)[0] for m in MODELS]


captured = cache(capture)


def checked(pool: RankPool, model: str, *cuts: float, **options: str | int) -> CheckResult:
    """The check after two steps with SGD; it raises if anything differs from the plain model."""
    if "hf_" in model:
        pytest.importorskip("transformers")
    dtype = str(options.get("dtype", "float32"))
    plan = plan_for(model, captured(model, 2, dtype), cuts, **options)
    result = pool.call(run, plan, RunSettings(model=model, steps=2, check=True))[0]
    assert result.check is not None
    return result.check


@pytest.mark.parametrize("model", often("zoo:gpt2", "encdec", "unet", "t5"))
def test_two_uneven_stages_train_as_the_plain_model(two_ranks: RankPool, model: str):
    check = checked(two_ranks, model, 0.3)
    assert check.losses <= 1e-6 and check.gradients <= 1e-5


@pytest.mark.parametrize("model", often("t5"))
def test_four_stages_train_as_the_plain_model(four_ranks: RankPool, model: str):
    check = checked(four_ranks, model, 0.2, 0.4, 0.8, schedule="gpipe", num_microbatches=6)
    assert check.gradients <= 1e-5


@pytest.mark.parametrize("model", often("encdec"))
def test_two_stages_of_two_replicas_train_as_the_plain_model(four_ranks: RankPool, model: str):
    check = checked(four_ranks, model, 0.5, replicas=2, dtype="float64")
    assert check.gradients <= 1e-12 and check.num_buffers == 0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd-momentum"])
def test_every_optimizer_trains_as_the_plain_model(two_ranks: RankPool, optimizer: str):
    plan = plan_for("zoo:gpt2-tiny", captured("zoo:gpt2-tiny"), [0.5])
    settings = RunSettings(model="zoo:gpt2-tiny", steps=4, check=True, optimizer=optimizer)
    result = two_ranks.call(run, plan, settings)[0]
    assert result.check is not None and result.optimizer == optimizer


def test_bfloat16_trains_within_its_own_precision(two_ranks: RankPool):
    check = checked(two_ranks, "zoo:gpt2-tiny", 0.5, dtype="bfloat16")
    assert check.tolerance == 5e-2
