"""Frameworks that need not be there: the tests that ask for one are skipped, with the reason."""

import importlib.metadata
from collections.abc import Callable

import pytest

from autopart.proofs import PROOFS

PACKAGES = {target: proof.package for target, proof in PROOFS.items()}
PACKAGES["device-map"] = "accelerate"


@pytest.fixture
def needs(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Skip unless the package of a target is installed; scripts/check_exports installs them."""

    def check(target: str) -> None:
        try:
            importlib.metadata.version(PACKAGES[target])
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(
                f"{PACKAGES[target]} is not installed; scripts/check_exports runs this test"
            )
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")

    return check
