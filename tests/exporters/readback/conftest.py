"""Tests for a framework that is not installed are skipped, with the reason."""

import importlib.metadata
from typing import Protocol

import pytest

from autopart.exporters.readback.check import READERS

PACKAGES = {target: reader.package for target, reader in READERS.items()}
PACKAGES["device-map"] = "accelerate"


class Needs(Protocol):
    """The type of the fixture `needs`."""

    def __call__(self, target: str, version: str = "") -> None: ...


@pytest.fixture
def needs(monkeypatch: pytest.MonkeyPatch) -> Needs:
    """Skip unless a target's package is installed, in a version with the given start.

    The environments from scripts/check_exports have the packages.
    """

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
