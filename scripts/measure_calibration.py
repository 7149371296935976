"""Analytic and scaled profiles of tiny models beside measured ones, on this CPU with one thread.

    python scripts/measure_calibration.py CALIBRATION [--models gpt2 mlp] [--scaled gpt2]

CALIBRATION comes from `autopart probe --kernels`. Each model is measured with microbatches of 4. Its step (the sum over all
layers) stands beside that of three analytic profiles: the plain roofline, the kernel model's table, and the calibrated one.
Models after --scaled are measured with microbatches of 8 as well, and language models with half the sequence and with half as
many blocks again. They stand beside predictions from the first profile: in proportion, and by `autopart scale-profile`.

Each comparison has a second error at equal pace: the prediction times the pace of the measurement over the pace behind the
prediction, which is that of the calibration or of the first profile. The first profile is measured again beside each other one.
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from autopart.records.calibration import Calibration, load_calibration
from autopart.records.microbatch_sizes import scale_profile
from autopart.records.pace import Pace
from autopart.records.profile import Profile
from autopart.runtime.measuring.threads import use_threads
from autopart.runtime.profiling.profiler import profile_model
from autopart.scaling.blocks import repeat_blocks
from autopart.scaling.settings import ScaledSetting, scale_to

MODELS = ("mlp", "gpt2", "llama", "resnet", "unet", "encdec", "moe")
SMALL, LARGE = 4, 8
LANGUAGE = {"gpt2": ("GPT2", 8, 12, 64), "llama": ("Llama", 6, 9, 64)}
"""Class, blocks, other number of blocks and sequence length of tiny language models."""
WITH_BLOCKS = """import dataclasses
import torch
from autopart.zoo import {name} as room
from autopart.zoo.tokens import token_loss as loss_fn

SIZE = dataclasses.replace(room.SIZES["tiny"], layers={blocks})

def build_model():
    return room.{own}(SIZE)

def example_inputs(microbatch_size):
    return torch.randint(SIZE.vocabulary, (microbatch_size, SIZE.length))

example_target = example_inputs
"""


class Predicted(NamedTuple):
    """A predicted profile and the pace behind it; None where none was measured."""

    profile: Profile
    pace: Pace | None


def step(profile: Profile) -> float:
    """Seconds of all layers' forwards and backwards."""
    return sum(
        layer.forward_time + layer.input_grad_time + layer.weight_grad_time
        for layer in profile.graph.layers
    )


def told(name: str, measured: Profile, others: Mapping[str, Predicted]) -> str:
    """The measured milliseconds, and each prediction with its error, raw and at equal pace."""
    own, now = step(measured), measured.pace or None
    parts = []
    for word, (profile, pace) in others.items():
        error = step(profile) / own - 1
        at = (
            f", at equal pace {(error + 1) * now.time / pace.time - 1:+.1%}" if now and pace else ""
        )
        parts.append(f"{word} {1e3 * step(profile):.2f} ({error:+.1%}{at})")
    paced = f"pace {1e3 * now.time:.2f} ms" if now else "no pace"
    return f"{name}: measured {1e3 * own:.2f} ms ({paced}); {'; '.join(parts)}"


def analytic(model: str, calibration: Calibration) -> dict[str, Predicted]:
    """The three analytic profiles of a model."""

    def on_meta(target: str | None = None, calibrated: Calibration | None = None) -> Profile:
        return profile_model(
            model,
            microbatch_size=SMALL,
            device="meta",
            gpu="cpu",
            target=target,
            calibration=calibrated,
        )

    return {
        "plain roofline": Predicted(on_meta(), None),
        "table": Predicted(on_meta("torch"), None),
        "calibrated": Predicted(on_meta(None, calibration), calibration.pace or None),
    }


def scaled(name: str, repeats: int) -> list[str]:
    """A line for each other setting of a model, beside its own profile."""
    model = f"zoo:{name}-tiny"

    def measured_now() -> Profile:
        return profile_model(model, microbatch_size=SMALL, repeats=repeats)

    lines: list[str] = []
    base = measured_now()
    larger = profile_model(model, microbatch_size=LARGE, repeats=repeats)
    lines.append(
        told(
            f"{name}, {SMALL} to {LARGE} samples",
            larger,
            {
                "in proportion": Predicted(scale_profile(base, LARGE), base.pace or None),
                "scale-profile": Predicted(
                    scale_to(base, name, ScaledSetting(microbatch_size=LARGE)), base.pace or None
                ),
            },
        )
    )
    if name not in LANGUAGE:
        return lines
    own, blocks, other, length = LANGUAGE[name]
    base = measured_now()
    short = profile_model(
        model, microbatch_size=SMALL, repeats=repeats, sequence_length=length // 2
    )
    by = ScaledSetting(sequence_length=length // 2)
    lines.append(
        told(
            f"{name}, {length} to {length // 2} positions",
            short,
            {
                "in proportion": Predicted(_times(base, 0.5), base.pace or None),
                "scale-profile": Predicted(scale_to(base, name, by), base.pace or None),
            },
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "with_blocks.py"
        file.write_text(WITH_BLOCKS.format(name=name, own=own, blocks=other), encoding="utf-8")
        base = measured_now()
        deeper = profile_model(str(file), microbatch_size=SMALL, repeats=repeats)
    lines.append(
        told(
            f"{name}, {blocks} to {other} blocks",
            deeper,
            {
                "in proportion": Predicted(_times(base, other / blocks), base.pace or None),
                "scale-profile": Predicted(repeat_blocks(base, other), base.pace or None),
            },
        )
    )
    return lines


def _times(profile: Profile, factor: float) -> Profile:
    layers = tuple(
        msgspec.structs.replace(
            layer,
            forward_time=factor * layer.forward_time,
            input_grad_time=factor * layer.input_grad_time,
            weight_grad_time=factor * layer.weight_grad_time,
        )
        for layer in profile.graph.layers
    )
    return msgspec.structs.replace(
        profile, graph=msgspec.structs.replace(profile.graph, layers=layers)
    )


def main() -> None:
    """Print a line for each comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("calibration")
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--scaled", nargs="*", default=())
    parser.add_argument("--repeats", type=int, default=10)
    asked = parser.parse_args()
    use_threads(1)
    calibration = load_calibration(asked.calibration)
    for name in asked.models:
        model = f"zoo:{name}-tiny"
        measured = profile_model(model, microbatch_size=SMALL, repeats=asked.repeats)
        line = told(f"{name}, {SMALL} samples", measured, analytic(model, calibration))
        print(line, flush=True)
    for name in asked.scaled:
        for line in scaled(name, asked.repeats):
            print(line, flush=True)


if __name__ == "__main__":
    main()
