"""The script makes, shapes and always removes its hosts; other tests cover its measurements."""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
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
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("tc")):
        pytest.skip("network namespaces need root, ip and tc")
    trial = f"autopart-{os.getpid()}-trial"
    if subprocess.run(["ip", "netns", "add", trial], capture_output=True).returncode:
        pytest.skip("this machine makes no network namespaces")
    subprocess.run(["ip", "netns", "delete", trial], check=True)
    spec = importlib.util.spec_from_file_location("measure_two_hosts", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(str(SCRIPTS))
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


ANSWER = "import socket; s = socket.create_server(('192.0.2.2', 5000)); s.accept()"
CALL = """
import socket, time
while True:
    begin = time.monotonic()
    try:
        socket.create_connection(('192.0.2.2', 5000), timeout=5).close()
        break
    except OSError:
        time.sleep(0.1)
print(time.monotonic() - begin)
"""


def test_a_connection_takes_there_and_back_at_least_the_latency(script: ModuleType) -> None:
    asked = argparse.Namespace(bandwidth=5e6, latency=0.05)
    with script.two_hosts(asked) as (first, second):
        inside = ["ip", "netns", "exec"]
        answer = subprocess.Popen([*inside, second.namespace, sys.executable, "-c", ANSWER])
        called = subprocess.run(
            [*inside, first.namespace, sys.executable, "-c", CALL],
            capture_output=True,
            text=True,
            timeout=600,
            check=True,
        )
        assert float(called.stdout) >= 0.1
        answer.wait(60)


def test_no_thread_of_the_wire_is_left_to_use_its_files(script: ModuleType) -> None:
    """A thread that is left would write frames into whichever file has the wire's number next."""
    wire, before = sys.modules["delayed_wire"], set(threading.enumerate())
    names = [f"autopart-{os.getpid()}-wire{end}" for end in "ab"]
    for name in names:
        subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        with wire.delayed_wire(names, "between", 0.05):
            assert len(set(threading.enumerate()) - before) == 4
            for name in names:
                subprocess.run(["ip", "-n", name, "link", "set", "between", "up"], check=True)
        assert set(threading.enumerate()) <= before
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=True)
