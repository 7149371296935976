"""The script makes, shapes and always removes its hosts; other tests cover its measurements."""

import argparse
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.support.places import SCRIPTS

SCRIPT = SCRIPTS / "measure_two_hosts.py"


def namespaces() -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return [line.split()[0] for line in listed.stdout.splitlines()]


def shape_of(namespace: str) -> str:
    words = ["tc", "-n", namespace, "qdisc", "show", "dev", "between"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def script() -> Iterator[ModuleType]:
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("tc")):
        pytest.skip("network namespaces need root, ip and tc")
    trial = f"autopart-{os.getpid()}-trial"
    if subprocess.run(["ip", "netns", "add", trial], capture_output=True).returncode:
        pytest.skip("this machine makes no network namespaces")
    subprocess.run(["ip", "netns", "delete", trial], check=True)
    spec = importlib.util.spec_from_file_location("measure_two_hosts", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module


def test_the_hosts_have_the_given_bandwidth_and_are_removed_even_after_an_error(
    script: ModuleType,
) -> None:
    asked = argparse.Namespace(bandwidth=5e6, latency=0.0)
    with pytest.raises(ZeroDivisionError), script.two_hosts(asked) as hosts:
        names = {host.namespace for host in hosts}
        assert names <= set(namespaces())
        assert all("tbf" in shape_of(name) and "rate 40Mbit" in shape_of(name) for name in names)
        raise ZeroDivisionError
    assert not names & set(namespaces())
