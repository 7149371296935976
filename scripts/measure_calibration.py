"""Analytic and scaled profiles of tiny models beside measured ones, on this CPU with one thread.

    python scripts/measure_calibration.py CALIBRATION [--models gpt2 mlp] [--scaled gpt2]

CALIBRATION comes from `autopart probe --kernels`. Each model is measured with microbatches of 4. Its step (the sum over all
layers) stands beside that of three analytic profiles: the plain roofline, the kernel model's table, and the calibrated one.
Models after --scaled are measured with microbatches of 8 as well. That stands beside two predictions from the first profile: in
proportion to samples, and by the kernel model's ratio (`autopart scale-profile`).
"""

import argparse
from collections.abc import Mapping

from autopart.records.calibration import load_calibration
from autopart.records.microbatch_sizes import scale_profile
from autopart.records.profile import Profile
from autopart.runtime.measuring.threads import use_threads
from autopart.runtime.profiling.profiler import profile_model
from autopart.scaling.settings import ScaledSetting, scale_to

MODELS = ("mlp", "gpt2", "llama", "resnet", "unet")
SMALL, LARGE = 4, 8


def step(profile: Profile) -> float:
    """Seconds of all layers' forwards and backwards."""
    return sum(
        layer.forward_time + layer.input_grad_time + layer.weight_grad_time
        for layer in profile.graph.layers
    )


def told(name: str, measured: Profile, others: Mapping[str, Profile]) -> str:
    """The measured milliseconds, and each prediction with its error."""
    own = step(measured)
    parts = [f"{word} {1e3 * step(o):.2f} ({step(o) / own - 1:+.1%})" for word, o in others.items()]
    pace = measured.pace
    at = f"pace {1e3 * pace.time:.2f} ms" if pace else "no pace"
    return f"{name}: measured {1e3 * own:.2f} ms ({at}); {'; '.join(parts)}"


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
        others = {
            "plain roofline": profile_model(model, microbatch_size=SMALL, device="meta", gpu="cpu"),
            "table": profile_model(
                model, microbatch_size=SMALL, device="meta", gpu="cpu", target="torch"
            ),
            "calibrated": profile_model(
                model, microbatch_size=SMALL, device="meta", gpu="cpu", calibration=calibration
            ),
        }
        print(told(f"{name}, {SMALL} samples", measured, others), flush=True)
        if name not in asked.scaled:
            continue
        larger = profile_model(model, microbatch_size=LARGE, repeats=asked.repeats)
        scaled = {
            "in proportion": scale_profile(measured, LARGE),
            "scale-profile": scale_to(measured, name, ScaledSetting(microbatch_size=LARGE)),
        }
        print(told(f"{name}, {SMALL} to {LARGE} samples", larger, scaled), flush=True)


if __name__ == "__main__":
    main()
