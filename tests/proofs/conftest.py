"""Frameworks that need not be there: the tests that ask for one are skipped, with the reason."""

import importlib.metadata
from typing import Protocol

import pytest

from autopart.proofs import PROOFS

PACKAGES = {target: proof.package for target, proof in PROOFS.items()}
PACKAGES["device-map"] = "accelerate"


class Needs(Protocol):
    """What the fixture `needs` gives."""

    def __call__(self, target: str, version: str = "") -> None: ...


@pytest.fixture
def needs(monkeypatch: pytest.MonkeyPatch) -> Needs:
    """Skip unless the package of a target is installed, in a version that starts so; the environments
    of scripts/check_exports have them."""

    def check(target: str, version: str = "") -> None:
        package = PACKAGES[target]
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed; scripts/check_exports runs this test")
        if not found.startswith(version):
            pytest.skip(f"{package} {found} is installed, and this test is for {version}")
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")

    return check
