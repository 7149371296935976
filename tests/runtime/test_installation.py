"""The findings of `autopart doctor` about the machine."""

import socket

import pytest
import torch

from autopart.runtime import installation
from autopart.runtime.installation import machine_findings, torch_finding


def test_everything_that_tests_need_works_here() -> None:
    found = {one.subject: one for one in machine_findings()}
    assert list(found) == [
        "autopart", "torch", "GPUs", "NCCL", "gloo", "torchrun", "frameworks",
    ]  # fmt: skip
    assert found["torch"].state == "ok"
    assert found["gloo"].state == "ok"
    assert "and sums" in found["gloo"].found
    assert all(one.advice for one in found.values() if one.state != "ok")
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("version", "wanted", "state"),
    [
        ("2.10.0", "<2.14,>=2.10", "ok"),
        ("2.13.1+cu130", ">=2.10,<2.14", "ok"),
        ("2.9.1", "<2.14,>=2.10", "broken"),
        ("2.14.0", "<2.14,>=2.10", "broken"),
        ("3.0", "<2.14,>=2.10", "broken"),
        ("2.13.0a0+git1", "", "ok"),
    ],
)
def test_a_torch_outside_the_range_is_broken(version: str, wanted: str, state: str) -> None:
    found = torch_finding(version, wanted)
    assert found.state == state
    if state == "broken":
        assert wanted in found.advice and version in found.found


def test_gloo_that_cannot_start_is_broken_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_store(*_: object, **__: object) -> None:
        raise RuntimeError("no route to the host\nand a long trace")

    monkeypatch.setattr(installation.dist, "TCPStore", no_store)
    found = {one.subject: one for one in machine_findings()}["gloo"]
    assert found.state == "broken"
    assert found.found == "a rank cannot start here: no route to the host"
    assert "GLOO_SOCKET_IFNAME" in found.advice


def test_a_host_without_an_address_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: str) -> str:
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "gethostbyname", unknown)
    found = {one.subject: one for one in machine_findings()}["torchrun"]
    assert found.state == "note" and "--rdzv-endpoint" in found.advice
