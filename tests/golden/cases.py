"""The golden cases: command lines whose plans, documents and exports must not change unnoticed.

`python -m tests.golden.cases` writes the files in `expected/` again. Do so only for an intended change of
behaviour, and read the difference before it is committed.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from autopart.cli import solve_command
from autopart.cli.main import exit_code

HERE = Path(__file__).parent
EXPECTED = HERE / "expected"
PROFILES = HERE / "profiles"
"""Profiles of version 1."""
GROUPS = HERE / "groups"
"""Profiles with context and expert degrees."""

CLOCKED = {"solve_seconds", "seconds", "autopart", "version"}
"""Keys whose values depend on the clock or on the release."""

QUICK = {
    "sample": "--profile sample.json --gpus 8 --nodes 2",
    "sample_stages": "--profile sample.json --gpus 8 --nodes 2 --stages 4 --global-batch 16",
    "sample_uniform": "--profile sample.json --gpus 4 --stages 4 --solver uniform",
    "sample_parameters": "--profile sample.json --gpus 4 --stages 4 --solver parameters",
    "sample_dp": "--profile sample.json --gpus 4 --stages 4 --solver dp",
    "sample_ilp": "--profile sample.json --gpus 4 --stages 4 --solver ilp",
    "sample_pins": "--profile sample.json --gpus 4 --stages 4 --pin h.2=1 --same-stage h.3,h.4 "
    "--different-stage embed,h.0",
    "sample_mixed": "--profile sample.json --gpu h100-sxm:2,l40s:2 --gpus 4 --stages 2",
    "sample_sizes": "--profile sample.json --gpus 4 --microbatch-size 1,2,4 --global-batch 32",
    "sample_bottleneck": "--profile sample.json --gpus 8 --stages 4 --objective bottleneck",
    "mlp": "--profile mlp-tiny.json --gpus 4 --stages 4",
    "mlp_zb": "--profile mlp-tiny.json --gpus 4 --stages 4 --schedule zb-h1,zb-h2 --global-batch 32",
    "mlp_per_stage": "--profile mlp-tiny.json --gpus 6 --replicas per-stage --global-batch 24",
    "gpt2_interleaved": "--profile gpt2-tiny.json --gpus 2 --stages-per-rank 2 --schedule "
    "interleaved-1f1b,looped-bfs --global-batch 16",
    "gpt2_v": "--profile gpt2-tiny.json --gpus 2 --schedule zbv,dualpipev --global-batch 16",
    "unet": "--profile unet-tiny.json --gpus 4 --stages 4 --global-batch 16",
    "encdec": "--profile encdec-tiny.json --gpus 4 --stages 4 --global-batch 16",
    "resnet": "--profile resnet-tiny.json --gpus 4 --stages 4 --global-batch 16",
    "moe_ilp": "--profile moe-tiny.json --gpus 2 --stages 2 --solver ilp --global-batch 8",
    "llama_recompute": "--profile llama-8b.json --gpus 8 --stages 8 --global-batch 64 "
    "--memory 24GiB --recompute auto --zero1",
    "llama_selective": "--profile llama-8b.json --gpus 8 --nodes 2 --global-batch 32 "
    "--recompute selective --memory 60GiB --gradient-dtype float32",
    "llama_layers": "--profile llama-8b.json --gpus 8 --stages 4 --global-batch 32 "
    "--recompute auto --recompute-layer blocks.3 --keep-layer blocks.5 --offload-layer blocks.9",
    "llama_megatron": "--profile llama-8b.json --gpus 4 --stages 4 --schedule 1f1b --global-batch 16 "
    "--precision bfloat16 --optimizer sgd",
    "moe_expert": "--profile moe-expert.json --gpu h100-sxm --gpus 4 --stages 2 --expert 2 --target megatron "
    "--global-batch 16",
    "gpt2_context": "--profile gpt2-context.json --gpu h100-sxm --gpus 4 --stages 2 --context 2 --target megatron "
    "--global-batch 16",
    "llama_zero3": "--profile llama-8b.json --gpus 8 --stages 2 --shard zero3 --target torchtitan "
    "--global-batch 32",
    "llama_fsdp": "--profile llama-8b.json --gpus 8 --memory 140GiB --target accelerate --global-batch 32",
    "llama_infeasible": "--profile llama-8b.json --gpus 8 --nodes 2 --memory 4GiB --recompute auto",
}
"""The name of each quick case, with its options for `solve`."""

SLOW = {
    "sample_auto": "--profile sample.json --gpus 4 --stages 4 --schedule auto --global-batch 32",
    "mlp_auto": "--profile mlp-tiny.json --gpus 2 --schedule auto --global-batch 16",
    "gpt2_auto": "--profile gpt2-tiny.json --gpus 4 --schedule auto --global-batch 32",
    "unet_ilp": "--profile unet-tiny.json --gpus 2 --stages 2 --solver ilp --recompute auto "
    "--global-batch 8",
    "encdec_per_stage": "--profile encdec-tiny.json --gpus 4 --replicas per-stage --global-batch 16",
    "llama": "--profile llama-8b.json --gpus 16 --nodes 2 --global-batch 64 --zero1",
    "llama_sweep": "--profile llama-8b.json --gpus 8 --recompute auto --memory-sweep 6 "
    "--global-batch 32",
    "llama_optimizer_on_host": "--profile llama-8b.json --gpus 8 --nodes 2 --global-batch 32 "
    "--recompute auto --offload-optimizer auto --memory 30GiB",
    "llama_offload": "--profile llama-8b.json --gpus 8 --nodes 2 --stages 8 --global-batch 64 "
    "--recompute auto --offload auto --memory 22GiB",
}
"""The same for cases that take seconds each."""

UNHURRIED = 3000.0
"""Seconds that no case needs, however busy the machine is."""

EXPORTS = {
    "sample_stages": ("torch", "automodel", "device-map"),
    "mlp_zb": ("torch",),
    "gpt2_v": ("torch",),
    "llama_recompute": ("torch", "torchtitan", "vllm"),
    "gpt2_interleaved": ("torch",),
    "moe_expert": ("megatron", "torchtitan", "automodel", "primus"),
    "gpt2_context": ("megatron", "primus"),
    "llama_zero3": ("torchtitan",),
    "llama_fsdp": ("accelerate",),
    "llama_selective": ("torchtitan", "megatron", "deepspeed", "automodel", "primus"),
    "llama_megatron": (
        "torch",
        "torchtitan",
        "megatron",
        "deepspeed",
        "automodel",
        "primus",
        "vllm",
    ),
}
"""The export targets of a case."""


def outcome(name: str) -> dict[str, Any]:
    """Documents, plan and exported files from the commands of one case, without clocked values.

    The commands run in a temporary folder with all golden profiles.
    """
    with _folder() as folder:
        with mock.patch.object(solve_command, "BASELINE_SECONDS", (UNHURRIED, UNHURRIED)):
            solved = _run("solve", *_asked(name), "--time-limit", str(UNHURRIED), "--json")
        found: dict[str, Any] = {"solve": solved}
        if not (folder / "plan.json").exists():
            return found
        found["plan"] = _without_clock(json.loads((folder / "plan.json").read_text("utf-8")))
        profile = next(word for word in _asked(name) if word.endswith(".json"))
        found["verify"] = _run("verify", "plan.json", "--profile", profile, "--json")
        found["show"] = _run("show", "plan.json", "--json")
        found["simulate"] = _run("simulate", "plan.json", "--json", "--trace", "trace.json")
        found["trace"] = hashlib.sha256((folder / "trace.json").read_bytes()).hexdigest()
        found["exports"] = {target: _export(target) for target in EXPORTS.get(name, ())}
        return found


def content(found: dict[str, Any]) -> str:
    """The text of an expected file: equal outcomes give equal text."""
    return json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _asked(name: str) -> list[str]:
    return (QUICK | SLOW)[name].split()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    from autopart import save_profile
    from tests.support.samples import sample_profile

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for path in (*PROFILES.glob("*.json"), *GROUPS.glob("*.json")):
            shutil.copy(path, folder)
        save_profile(sample_profile(), folder / "sample.json")
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(before)


def _run(*arguments: str) -> Any:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = exit_code(arguments)
    document = _without_clock(json.loads(out.getvalue())) if out.getvalue() else None
    return {"code": code, "document": document}


def _export(target: str) -> Any:
    run = _run("export", "plan.json", "--to", target, "-o", target, "--json")
    files = {
        path.relative_to(target).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(Path(target).rglob("*"))
        if path.is_file()
    }
    return {**run, "files": files}


def _without_clock(document: Any) -> Any:
    if isinstance(document, dict):
        return {key: _without_clock(item) for key, item in document.items() if key not in CLOCKED}
    if isinstance(document, list):
        return [_without_clock(item) for item in document]
    return document


def main() -> None:
    """Write every expected file."""
    EXPECTED.mkdir(exist_ok=True)
    for name in sys.argv[1:] or (QUICK | SLOW):
        (EXPECTED / f"{name}.json").write_text(content(outcome(name)), encoding="utf-8")


if __name__ == "__main__":
    main()
