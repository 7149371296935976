"""Write profiles/ again: built-in models at their real sizes, analytic, and tiny ones, measured on this CPU.

Usage: .venv/bin/python scripts/make_profiles.py [file ...]

Without a file it writes all of them. The Llamas with their tensor degrees take most of the time: two minutes of the
processor for a file with 8B, five for one with 70B. No GPU is needed, since times follow the GPU's datasheet (docs/profiling.md).

The files with `-cpu-` are measured with one thread. Write them on a machine at rest, and name its processor in
profiles/README.md.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

from autopart.cli.main import exit_code

FOLDER = Path(__file__).parent.parent / "profiles"
TARGET = "torch"
"""The framework whose kernels the analytic profiles count: eager PyTorch, which `autopart run` uses too."""


class Model(NamedTuple):
    """How a model is profiled."""

    dtype: str
    microbatch_sizes: tuple[int, ...]
    degrees: str = ""
    """Tensor degrees beside 1, as `--tensor` takes them."""
    devices: tuple[str, ...] = ("a100-sxm-80gb", "h100-sxm")
    """GPUs, or `cpu`, where the model is measured."""


MODELS = {
    "encdec-base": Model("float32", (2, 8)),
    "gpt2-1.3b": Model("bfloat16", (1, 2)),
    "llama-8b": Model("bfloat16", (1, 2), "2,4,8"),
    "llama-70b": Model("bfloat16", (1, 2), "2,4,8", ("h100-sxm",)),
    "moe-small": Model("bfloat16", (2, 8)),
    "resnet-50": Model("float32", (2, 8)),
    "unet-base": Model("float32", (2, 8)),
} | {
    f"{model}-tiny": Model("float32", (4,), devices=("cpu",))
    for model in ("encdec", "gpt2", "llama", "mlp", "moe", "resnet", "unet")
}
"""The models, with bfloat16 for the decoder-only language models."""


class File(NamedTuple):
    """One file of the folder."""

    model: str
    device: str
    microbatch_size: int

    @property
    def name(self) -> str:
        """The file's name from model, device and microbatch size: `llama-8b-h100-sxm-mb2.json`."""
        return f"{self.model}-{self.device}-mb{self.microbatch_size}.json"

    def arguments(self, folder: Path) -> list[str]:
        """The command line that writes the file into `folder`."""
        model = MODELS[self.model]
        return [
            *("profile", f"zoo:{self.model}", "--device"),
            *(
                ("cpu",)
                if self.device == "cpu"
                else ("meta", "--gpu", self.device, "--target", TARGET)
            ),
            *("--dtype", model.dtype, "--microbatch-size", str(self.microbatch_size)),
            *(("--tensor", model.degrees) if model.degrees else ()),
            *("-o", str(folder / self.name)),
        ]


FILES = {
    file.name: file
    for model, how in MODELS.items()
    for device in how.devices
    for file in (File(model, device, size) for size in how.microbatch_sizes)
}
"""All files by name."""


def main() -> None:
    """Write the named profiles, or all; stop at the first that fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", metavar="file", help="names of files in profiles/")
    names = [Path(file).name for file in parser.parse_args().files] or list(FILES)
    for name in names:
        if name not in FILES:
            parser.error(f"{name} is no file of profiles/; they are {', '.join(FILES)}")
    FOLDER.mkdir(exist_ok=True)
    for name in names:
        if exit_code(FILES[name].arguments(FOLDER)) != 0:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
