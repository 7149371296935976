"""A calibration from a measured profile: a profile that known shares make gives these shares back."""

import msgspec
import pytest

from autopart.calibration.from_profile import calibrate_from_profile
from autopart.calibration.kinds import CalibratedDevice, Wanted, profiles_by_kind
from autopart.errors import ProfileError, UsageError
from autopart.records.kernels import kernels_of, stretched
from autopart.records.known_gpus import find_gpu
from autopart.records.profile import Profile

TABLE = kernels_of(find_gpu("cpu"), "torch")


@pytest.fixture(scope="module")
def measured() -> Profile:
    """An analytic profile under known stretches, which passes for a measured one."""
    true = stretched(stretched(TABLE, "products", 1.3), "memory", 1.6)
    device = CalibratedDevice("cpu", "float32", true)
    profile, _ = profiles_by_kind(Wanted("zoo:mlp-tiny", 32), device, ())
    return msgspec.structs.replace(
        profile,
        method="measured",
        device=msgspec.structs.replace(profile.device, kind="cpu", name="some processor"),
    )


@pytest.mark.slow
def test_the_shares_behind_a_profile_come_back(measured: Profile) -> None:
    made, fitted = calibrate_from_profile(measured, "own.json", gpu=None, target="torch")
    assert made.gpu == "cpu"
    assert fitted.stretches["products"] == pytest.approx(1.3, rel=0.03)
    assert fitted.stretches["memory"] == pytest.approx(1.6, rel=0.1)
    assert made.fit is not None
    assert made.fit.held_out_worst < 0.05
    assert made.validity is not None
    assert made.validity.most_params == measured.source.num_params


def test_an_analytic_profile_and_an_unknown_device_are_refused(measured: Profile) -> None:
    analytic = msgspec.structs.replace(measured, method="analytic")
    with pytest.raises(ProfileError, match="is analytic; a calibration needs a measured profile"):
        calibrate_from_profile(analytic, "own.json", gpu=None, target="torch")
    device = msgspec.structs.replace(measured.device, kind="cuda", name="Quantum 3000")
    other = msgspec.structs.replace(measured, device=device)
    with pytest.raises(UsageError, match="'Quantum 3000' is no known GPU; name one with --gpu"):
        calibrate_from_profile(other, "own.json", gpu=None, target="torch")
