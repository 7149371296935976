"""What this machine has for autopart: torch, GPUs, backends, and a launcher that works."""

import importlib.metadata
import platform
import re
import shutil
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Literal, NamedTuple

import torch
from torch import distributed as dist

from autopart.records.version import __version__
from autopart.text import counted, in_words

State = Literal["ok", "note", "broken"]
"""`note`: something that some users need is missing. `broken`: plans cannot run here."""

FRAMEWORKS = (
    "torchtitan",
    "megatron-core",
    "deepspeed",
    "nemo-automodel",
    "accelerate",
    "transformers",
)
"""Packages that exports are for, or that models come from."""
GLOO_SECONDS = 10.0
"""Seconds that the trial of gloo may take."""


class Finding(NamedTuple):
    """One thing that was looked at."""

    subject: str
    """What it is, in a word or two."""
    state: State
    """Whether it works."""
    found: str
    """What was found."""
    advice: str = ""
    """What to do; empty where nothing needs to be done."""


def machine_findings() -> Iterator[Finding]:
    """What is installed, which GPUs there are, and whether ranks can start here."""
    yield Finding(
        "autopart",
        "ok",
        f"{__version__} with Python {platform.python_version()} on {platform.system()}",
    )
    yield torch_finding(str(torch.__version__), _wanted_torch())
    yield _gpus()
    yield _nccl()
    yield _gloo()
    yield _torchrun()
    yield _frameworks()


def torch_finding(found: str, wanted: str) -> Finding:
    """Whether a release of torch is in the range that autopart asks for, such as `<2.14,>=2.10`."""
    release = _release(found)
    bounds = re.findall(r"(>=|<)\s*([0-9.]+)", wanted)
    fits = all(
        release >= _release(bound) if sign == ">=" else release < _release(bound)
        for sign, bound in bounds
    )
    if fits:
        return Finding("torch", "ok", found)
    return Finding(
        "torch", "broken", f"{found}, and autopart needs {wanted}", f"pip install 'torch{wanted}'"
    )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]+", version.partition("+")[0])[:2])


def _wanted_torch() -> str:
    """The range of torch in autopart's own requirements; empty where it is not installed as a package."""
    try:
        needs = importlib.metadata.requires("autopart") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    named = [need for need in needs if re.match(r"torch\b(?!\w)", need)]
    return named[0].removeprefix("torch").partition(";")[0].strip(" ()") if named else ""


def _gpus() -> Finding:
    if not torch.cuda.is_available():
        return Finding(
            "GPUs",
            "note",
            "no CUDA GPU",
            "profile on the CPU, or for another GPU with --device meta --gpu NAME",
        )
    names = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
    kinds = {name: names.count(name) for name in names}
    listed = in_words([f"{count} x {name}" for name, count in kinds.items()])
    return Finding("GPUs", "ok", f"{listed}, CUDA {torch.version.cuda}")


def _nccl() -> Finding:
    if dist.is_available() and dist.is_nccl_available():
        return Finding("NCCL", "ok", "available")
    return Finding(
        "NCCL", "note", "not in this build of torch", "ranks on GPUs need a CUDA build of torch"
    )


def _gloo() -> Finding:
    """Whether one rank with gloo can start on this host and sum: a host name that no one resolves breaks it."""
    if not (dist.is_available() and dist.is_gloo_available()):
        return Finding(
            "gloo", "broken", "not in this build of torch", "install torch from pytorch.org"
        )
    limit = timedelta(seconds=GLOO_SECONDS)
    try:
        store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True, timeout=limit)  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=limit)
        try:
            one = torch.ones(1)
            dist.all_reduce(one)
        finally:
            dist.destroy_process_group()
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0]
        return Finding(
            "gloo",
            "broken",
            f"a rank cannot start here: {reason}",
            "name a network interface: GLOO_SOCKET_IFNAME=lo",
        )
    return Finding("gloo", "ok", f"a rank starts on port {store.port} and sums")


def _torchrun() -> Finding:
    host = socket.gethostname()
    try:
        address = socket.gethostbyname(host)
    except OSError:
        return Finding(
            "torchrun",
            "note",
            f"the host name {host} has no address",
            "on several nodes pass --rdzv-endpoint with an address",
        )
    if shutil.which("torchrun") is None:
        return Finding(
            "torchrun",
            "note",
            "not on the PATH",
            "activate the environment, or use python -m torch.distributed.run",
        )
    return Finding("torchrun", "ok", f"found; {host} is {address}")


def _frameworks() -> Finding:
    there: list[str] = []
    for name in FRAMEWORKS:
        try:
            there.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    if not there:
        return Finding(
            "frameworks",
            "note",
            "none of the export targets is installed",
            "exports need none of them to be written",
        )
    return Finding("frameworks", "ok", f"{counted(len(there), 'package')}: {', '.join(there)}")
