"""Measured profiles at other settings: seconds times the model's ratio, bytes counted anew."""

import msgspec
import pytest

from autopart.errors import ClusterError, ModelError, ProfileError, UsageError
from autopart.records.profile import Profile, calibration_of
from autopart.runtime.profiling.profiler import profile_model
from autopart.scaling.settings import ScaledSetting, scale_to

SLOWER = 1.25
PHASES = ("forward_time", "input_grad_time", "weight_grad_time", "update_time")


def on_meta(model: str, microbatch_size: int, gpu: str = "cpu", **changes: object) -> Profile:
    return profile_model(
        model,
        microbatch_size=microbatch_size,
        device="meta",
        gpu=gpu,
        target="torch",
        **changes,  # pyright: ignore[reportArgumentType]
    )


def as_measured(profile: Profile, factor: float) -> Profile:
    """An analytic profile whose seconds are `factor` times as long, which passes for a measured one."""
    layers = [
        msgspec.structs.replace(layer, **{p: factor * getattr(layer, p) for p in PHASES})
        for layer in profile.graph.layers
    ]
    return msgspec.structs.replace(
        profile,
        method="measured",
        kernels=msgspec.UNSET,
        device=msgspec.structs.replace(profile.device, kind="cpu", name="some processor"),
        graph=msgspec.structs.replace(profile.graph, layers=tuple(layers)),
    )


@pytest.fixture(scope="module")
def measured() -> Profile:
    return as_measured(on_meta("zoo:mlp-tiny", 4), SLOWER)


def seconds(profile: Profile) -> list[float]:
    return [getattr(layer, phase) for layer in profile.graph.layers for phase in PHASES]


def unscaled(profile: Profile) -> object:
    """Everything of the graph but its seconds."""
    zero = dict.fromkeys((*PHASES, "split_time"), 0.0)
    return [
        msgspec.structs.replace(layer, recompute=None, selective=None, **zero)
        for layer in profile.graph.layers
    ], profile.graph.values


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "there"),
    [
        (ScaledSetting(microbatch_size=16), {"microbatch_size": 16}),
        (
            ScaledSetting(dtype="bfloat16", gpu="h100-sxm"),
            {"microbatch_size": 4, "dtype": "bfloat16", "gpu": "h100-sxm"},
        ),
    ],
)
def test_seconds_keep_their_factor_and_bytes_are_those_of_the_new_setting(
    measured: Profile, setting: ScaledSetting, there: dict[str, object]
) -> None:
    found = scale_to(measured, "own.json", setting)
    true = on_meta("zoo:mlp-tiny", **there)  # pyright: ignore[reportArgumentType]
    assert seconds(found) == pytest.approx([SLOWER * time for time in seconds(true)])
    assert unscaled(found) == unscaled(true)
    assert (found.method, found.device, found.dtype) == ("analytic", true.device, true.dtype)
    assert (calibration_of(found) or "").startswith("own.json, measured on some processor: ")
    assert "ratio between both settings" in found.warnings[-1]


@pytest.mark.slow
def test_a_sequence_is_cut_off_and_its_bytes_are_counted() -> None:
    own = on_meta("zoo:llama-tiny", 2)
    found = scale_to(as_measured(own, SLOWER), "own.json", ScaledSetting(sequence_length=16))
    before, after = (
        {value.name: value.bytes for value in profile.graph.values} for profile in (own, found)
    )
    (ids,) = {one.bytes for one in found.graph.inputs}
    assert ids == 2 * 16 * 8
    assert after.keys() == before.keys()
    assert all(after[name] < before[name] for name in after if before[name] > 1000)
    assert "sequence of 16" in found.warnings[-1]


@pytest.mark.parametrize(
    ("model", "length", "message"),
    [
        ("zoo:resnet-tiny", 32, "a sequence is a dimension of whole numbers .* no input has one"),
        ("zoo:gpt2-tiny", 128, "'positions' has 64 positions, so sequences of 128 do not fit"),
    ],
)
def test_what_is_no_sequence_and_what_does_not_fit_are_refused(
    model: str, length: int, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        on_meta(model, 2, sequence_length=length)


def test_what_cannot_be_scaled_is_refused_before_anything_runs(measured: Profile) -> None:
    with pytest.raises(ClusterError, match="z100"):
        scale_to(measured, "own.json", ScaledSetting(gpu="z100"))
    analytic = msgspec.structs.replace(measured, method="analytic")
    with pytest.raises(ProfileError, match=r"own.json is analytic; only a measured profile"):
        scale_to(analytic, "own.json", ScaledSetting(microbatch_size=8))
    with pytest.raises(UsageError, match="nothing changes"):
        scale_to(measured, "own.json", ScaledSetting(microbatch_size=4, dtype="float32"))
    device = msgspec.structs.replace(measured.device, kind="cuda", name="Quantum 3000")
    other = msgspec.structs.replace(measured, device=device)
    with pytest.raises(UsageError, match="'Quantum 3000' is no known GPU"):
        scale_to(other, "own.json", ScaledSetting(microbatch_size=8))
