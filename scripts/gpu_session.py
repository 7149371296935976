"""One session on a GPU: profiles for `profiles/`, and predictions beside measurements on one GPU.

    python scripts/gpu_session.py --out DIR
    python scripts/gpu_session.py --out DIR --models gpt2-124m resnet-50 --seconds 300
    python scripts/gpu_session.py --out DIR --device cpu --quick

First the session measures the host link, alone and beside a multiplication of matrices. Then each
model runs in its own process:

1. Profile it in bfloat16 (float32 on a CPU).
2. Solve it in 4 stages on 4 GPUs like this one.
3. Run each rank alone (`autopart validate --one-device`): with every layer kept, with every block
   recomputed whole or in part, and with every block's stash offloaded.

Models that do not fit into `--seconds` are skipped, and the results list them.

DIR (by default $OUT, else gpu-session) then has one profile per model, `gpu-session.json` with all
figures and `gpu-session.md` with the tables. `--quick` takes tiny models on any device, as a trial.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

import autopart
from autopart.records.cluster import HostLink
from autopart.records.known_gpus import GPUS
from autopart.units import format_bytes, format_time

HERE = Path(__file__).resolve().parent
STAGES, MICROBATCHES = 4, 8
KEPT, RECOMPUTED, PARTLY, OFFLOADED = "kept", "recomputed", "recomputed in part", "offloaded"
POLICIES = (KEPT, RECOMPUTED, PARTLY, OFFLOADED)
COPY_BYTES = {"cuda": 1 << 28, "cpu": 1 << 22}
DTYPES = {"cuda": "bfloat16", "cpu": "float32"}
"""dtype per device; a CPU may take a hundred times as long to multiply in 16 bits."""
ENOUGH = 20.0
"""Seconds that must be left to begin with a model."""

Row = dict[str, Any]


class Subject(NamedTuple):
    """A model in the session."""

    model: str
    """Model argument for `autopart profile`."""
    microbatch_size: int
    blocks: str
    """Prefix of the names of all layers that may be recomputed or offloaded."""
    seconds: float
    """Seconds that this model may take out of the whole session."""


MODELS = {
    "gpt2-124m": Subject("zoo:gpt2-124m", 8, "blocks", 90.0),
    "llama-8b-slice": Subject(str(HERE / "llama_slice.py"), 1, "blocks", 150.0),
    "resnet-50": Subject("zoo:resnet-50", 64, "blocks", 90.0),
    "unet-base": Subject("zoo:unet-base", 4, "", 90.0),
    "gpt2-1.3b": Subject("zoo:gpt2-1.3b", 4, "blocks", 150.0),
}
QUICK = {
    "gpt2-tiny": Subject("zoo:gpt2-tiny", 2, "blocks", 400.0),
    "llama-tiny": Subject("zoo:llama-tiny", 2, "blocks", 400.0),
    "resnet-tiny": Subject("zoo:resnet-tiny", 2, "blocks", 400.0),
    "unet-tiny": Subject("zoo:unet-tiny", 2, "", 400.0),
}


def main() -> None:
    asked = _options()
    asked.out.mkdir(parents=True, exist_ok=True)
    known = QUICK if asked.quick else MODELS
    if asked.child:
        _measure(asked.child, known[asked.child], asked)
        return
    until = time.monotonic() + asked.seconds
    names = asked.models or list(known)
    rows = [_host_link(asked.device)]
    for name in names:
        rows += _in_own_process(name, known[name], asked, until - time.monotonic())
    (asked.out / "gpu-session.json").write_text(json.dumps(rows, indent=1) + "\n")
    text = "\n".join(_report(rows)) + "\n"
    (asked.out / "gpu-session.md").write_text(text)
    sys.stdout.write(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    out = Path(os.environ.get("OUT", "gpu-session"))
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--models", nargs="+", choices=[*MODELS, *QUICK])
    parser.add_argument("--seconds", type=float, default=500.0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def _in_own_process(
    name: str, subject: Subject, asked: argparse.Namespace, left: float
) -> list[Row]:
    """The rows that one model's process wrote before its time was over."""
    if left < ENOUGH:
        return [{"step": name, "skipped": f"{max(0.0, left):.0f} s were left"}]
    lines = asked.out / f"{name}.rows"
    command = [sys.executable, __file__, "--child", name, "--out", str(asked.out)]
    command += ["--device", asked.device, "--steps", str(asked.steps)]
    command += ["--quick"] if asked.quick else []
    limit, said = min(left, subject.seconds), ""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        if ran.returncode:
            said = ran.stderr.strip().splitlines()[-1] if ran.stderr.strip() else "it failed"
    except subprocess.TimeoutExpired:
        said = f"stopped after {limit:.0f} s"
    rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    lines.unlink(missing_ok=True)
    return [*rows, {"step": name, "skipped": f"the rest: {said}"}] if said else rows


def _measure(name: str, subject: Subject, asked: argparse.Namespace) -> None:
    """Profile and validate one model, and write each row at once.

    The rows stay if the process is stopped.
    """
    torch.set_num_threads(1)
    with (asked.out / f"{name}.rows").open("w") as file:
        for row in _rows(name, subject, asked):
            file.write(json.dumps(row) + "\n")
            file.flush()


def _rows(name: str, subject: Subject, asked: argparse.Namespace) -> Iterator[Row]:
    began = time.monotonic()
    profile = autopart.profile_model(
        subject.model,
        microbatch_size=subject.microbatch_size,
        dtype=DTYPES[asked.device],
        device=asked.device,
        repeats=3 if asked.quick else 10,
    )
    card = profile.device.name
    slug = "-".join(card.lower().replace("(", " ").replace(")", " ").split())
    file = asked.out / f"{name}-{slug}-mb{subject.microbatch_size}.json"
    autopart.save_profile(profile, file)
    yield {
        "step": "profile",
        "model": name,
        "device": card,
        "file": file.name,
        "seconds": time.monotonic() - began,
        "whole": msgspec.to_builtins(profile.whole),
        "warnings": list(profile.warnings),
    }
    plan = _solved(profile, _cluster(card, asked.device))
    for policy in POLICIES:
        began = time.monotonic()
        with_policy = _with_policy(profile, plan, subject, policy)
        if with_policy is None:
            yield {"step": f"{name}, {policy}", "skipped": "no block allows it"}
            continue
        found = autopart.validate_plan(
            with_policy,
            subject.model,
            steps=asked.steps,
            one_device=True,
            device=asked.device,
        )
        assert found is not None
        yield {
            "step": "validate",
            "model": name,
            "treatment": policy,
            "device": card,
            "seconds": time.monotonic() - began,
            "fidelity": msgspec.to_builtins(found.fidelity),
        }


def _cluster(card: str, device: str) -> autopart.Cluster:
    """4 GPUs like this one (4 processes on a CPU) with the measured host link."""
    names = [gpu.name for gpu in GPUS.values() if card in gpu.cuda_names]
    kind = names[0] if names else "cpu" if device == "cpu" else "h100-sxm"
    measured = _host_link(device)
    link = HostLink(
        bandwidth=min(measured["out_bandwidth"], measured["back_bandwidth"]),
        overlaps=device == "cuda",
    )
    return msgspec.structs.replace(autopart.cluster_of(kind, gpus=STAGES), host_link=link)


def _with_policy(
    profile: autopart.Profile, plan: autopart.Plan, subject: Subject, policy: str
) -> autopart.Plan | None:
    """The same stages with one policy for all their blocks, priced by the solver.

    None if no block allows the policy.
    """
    able = {
        RECOMPUTED: lambda layer: layer.recompute is not None,
        PARTLY: lambda layer: layer.selective is not None,
        OFFLOADED: lambda layer: layer.stash_bytes > 0,
    }
    option = {
        RECOMPUTED: "recompute_layers",
        PARTLY: "selective_layers",
        OFFLOADED: "offload_layers",
    }
    if policy == KEPT:
        return plan
    blocks = tuple(
        layer.name
        for layer in profile.graph.layers
        if layer.name.startswith(subject.blocks) and able[policy](layer)
    )
    if not blocks:
        return None
    # Pins keep the plan's stages, so that only the policies differ.
    pins = {layer: s for s, stage in enumerate(plan.stages) for layer in stage.layers}
    return _solved(profile, plan.cluster, pins=pins, **{option[policy]: blocks})


def _solved(profile: autopart.Profile, cluster: autopart.Cluster, **asked: Any) -> autopart.Plan:
    return autopart.solve(
        profile,
        cluster,
        num_stages=STAGES,
        num_replicas=1,
        num_microbatches=MICROBATCHES,
        schedule="1f1b",
        **asked,
    )


def _host_link(device: str) -> Row:
    """Bytes per second to the host and back through pinned memory.

    Also the seconds of a multiplication, alone and with a copy beside it.
    """
    on = torch.device(device)
    size = COPY_BYTES[device]
    host = torch.empty(size, dtype=torch.uint8, pin_memory=device == "cuda")
    there = torch.empty(size, dtype=torch.uint8, device=on)
    side = 8192 if device == "cuda" else 256
    matrix = torch.randn(side, side, device=on, dtype=getattr(torch, DTYPES[device]))
    copies = torch.cuda.Stream() if device == "cuda" else None

    def out() -> None:
        host.copy_(there, non_blocking=True)

    def back() -> None:
        there.copy_(host, non_blocking=True)

    def multiply() -> None:
        for _ in range(4):
            torch.mm(matrix, matrix)

    def beside() -> None:
        if copies is None:
            out()
        else:
            with torch.cuda.stream(copies):
                out()
        multiply()

    alone = _time(multiply, device)
    return {
        "step": "host link",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "bytes": size,
        "out_bandwidth": size / _time(out, device),
        "back_bandwidth": size / _time(back, device),
        "multiply_seconds": alone,
        "copy_beside_multiply_seconds": _time(beside, device),
    }


def _time(task: Callable[[], None], device: str, repeats: int = 10) -> float:
    """The median seconds over `repeats` runs, after one warm-up run."""
    samples: list[float] = []
    for _ in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        task()
        if device == "cuda":
            torch.cuda.synchronize()
        samples.append(time.perf_counter() - begin)
    return statistics.median(samples[1:])


def _report(rows: list[Row]) -> Iterator[str]:
    link = rows[0]
    yield f"# {link['device']}, torch {torch.__version__}"
    yield ""
    yield (
        f"Host link: {link['out_bandwidth'] / 1e9:.1f} GB/s out, "
        f"{link['back_bandwidth'] / 1e9:.1f} GB/s back; a multiplication of "
        f"{format_time(link['multiply_seconds'])} takes with a copy beside it "
        f"{format_time(link['copy_beside_multiply_seconds'])}."
    )
    yield ""
    yield "| model | policy | stage time off, median | worst | bytes predicted / measured, least | most |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        if row["step"] == "validate":
            yield _validated(row)
    yield ""
    yield from _stages(rows)
    for row in rows:
        if row["step"] == "profile":
            yield f"- {row['model']}: {row['file']}; {'; '.join(row['warnings']) or 'no warning'}"
    for row in rows:
        if "skipped" in row:
            yield f"- {row['step']}: not done: {row['skipped']}"


def _validated(row: Row) -> str:
    found = row["fidelity"]
    times = sorted(abs(one["error"]) for one in found["actions"])
    sizes = [rank["error"] for rank in found["ranks"]]
    return (
        f"| {row['model']} | {row['treatment']} | {statistics.median(times):.1%} | {times[-1]:.1%} "
        f"| {min(sizes):+.1%} | {max(sizes):+.1%} |"
    )


def _stages(rows: list[Row]) -> Iterator[str]:
    yield "| model | policy | stage | F predicted | F | B predicted | B | peak predicted | peak |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        if row["step"] != "validate":
            continue
        actions = {(one["stage"], one["op"]): one for one in row["fidelity"]["actions"]}
        for stage, rank in enumerate(row["fidelity"]["ranks"]):
            cells = [
                format_time(actions[stage, op][source])
                for op in "FB"
                for source in ("predicted", "measured")
            ]
            sizes = [format_bytes(rank["predicted_bytes"]), format_bytes(rank["measured_bytes"])]
            yield f"| {' | '.join([row['model'], row['treatment'], str(stage), *cells, *sizes])} |"
    yield ""


if __name__ == "__main__":
    main()
