"""Measure a process's resident memory on a CPU beside a run's tensors, in MiB, by origin.

Usage: .venv/bin/python scripts/measure_reserve.py [MODEL]

One process does the same as each rank before and around its first training step. It keeps the
model's parameters (default: zoo:mlp-tiny), and at the end their gradients and AdamW's state. Choose
a small model. `autopart/records/other_gpus.py` reserves the last line's figure, rounded up for the
connections to other ranks.
"""

import argparse
from pathlib import Path


def main() -> None:
    """Print the peak resident memory after each part of the process."""
    typed = argparse.ArgumentParser(description=__doc__)
    typed.add_argument("model", nargs="?", default="zoo:mlp-tiny")
    name = typed.parse_args().model
    _say("the interpreter")
    import torch
    from torch import distributed

    _say("torch")
    store = distributed.TCPStore("127.0.0.1", 0, 1, is_master=True)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    _say("gloo")
    from autopart.runtime.capture.capture import capture_model
    from autopart.runtime.job import rank
    from autopart.runtime.models.model import build_training_model, example_batch
    from autopart.runtime.models.model_file import load_model

    _say(f"the executor ({rank.__name__})")
    source = load_model(name)
    model, batch = build_training_model(source), example_batch(source, 2)
    _say(f"{name}, captured as {len(capture_model(model, batch).layers)} layers")
    model(*batch).backward()
    torch.optim.AdamW(model.parameters()).step()
    _say("one step of AdamW")
    distributed.destroy_process_group()


def _say(step: str) -> None:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(f"{int(peak.split()[1]) / 1024:8.1f}  {step}", flush=True)


if __name__ == "__main__":
    main()
