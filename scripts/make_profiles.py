"""Write profiles/ again: analytic profiles of the built-in models at their real sizes.

Usage: .venv/bin/python scripts/make_profiles.py

No GPU is needed, since times follow the GPU's datasheet (docs/profiling.md). It takes about a
minute.
"""

import argparse
from pathlib import Path

from autopart.cli.main import exit_code

FOLDER = Path(__file__).parent.parent / "profiles"
GPU = "h100-sxm"
MICROBATCH_SIZE = 2
DTYPES = {
    "gpt2-1.3b": "bfloat16",
    "llama-8b": "bfloat16",
    "moe-small": "bfloat16",
    "encdec-base": "float32",
    "resnet-50": "float32",
    "unet-base": "float32",
}
"""Each model with its dtype: bfloat16 for the decoder-only language models."""


def file_name(model: str) -> str:
    """The profile's file name from model, GPU and microbatch size: `llama-8b-h100-sxm-mb2.json`."""
    return f"{model}-{GPU}-mb{MICROBATCH_SIZE}.json"


def arguments(model: str, folder: Path) -> list[str]:
    """The command line that writes the profile for `model`."""
    size, output = str(MICROBATCH_SIZE), str(folder / file_name(model))
    return [
        *("profile", f"zoo:{model}", "--device", "meta", "--gpu", GPU),
        *("--dtype", DTYPES[model], "--microbatch-size", size, "-o", output),
    ]


def main() -> None:
    """Write each profile; stop at the first that fails."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    FOLDER.mkdir(exist_ok=True)
    for model in DTYPES:
        if exit_code(arguments(model, FOLDER)) != 0:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
