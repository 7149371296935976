"""Writes the transcript in README.md anew: runs its commands in a temporary folder, and keeps some lines.

    .venv/bin/python scripts/transcript.py

The block stands between two markers. `…` stands for lines that are left out; those with this machine's own
seconds are among them, so every machine writes the same block.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = (
    "<!-- transcript: scripts/transcript.py writes it -->\n",
    "<!-- end of the transcript -->\n",
)
COLUMNS = "80"


class Shown(NamedTuple):
    """A command, and the parts of its output that the transcript keeps."""

    command: str
    parts: tuple[tuple[str, str], ...]
    """How the first and the last line of each part begin; an empty end is the end of the output."""


TRANSCRIPT = (
    Shown(
        "autopart solve --profile llama-8b-h100-sxm-mb2 --gpus 8 --nodes 2 --global-batch 32 -o llama.json",
        (
            ("zoo:llama-8b", "       norm, head"),
            ("step ", "step "),
            ("over every order", "step: "),
            ("compared with", ""),
        ),
    ),
    Shown("autopart show llama.json", (("rank 0", ""),)),
    Shown(
        "autopart verify llama.json --profile llama-8b-h100-sxm-mb2",
        (("prediction", ""),),
    ),
)


def block() -> str:
    """The transcript's lines, from commands that run now."""
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for shown in TRANSCRIPT:
            lines += [f"$ {shown.command}", *_kept(_output(shown.command, folder), shown.parts)]
    return "\n".join(lines) + "\n"


def _output(command: str, folder: str) -> list[str]:
    plain = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "NO_COLOR")}
    path = os.pathsep.join([str(README.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)],
        cwd=folder,
        env=plain | {"COLUMNS": COLUMNS, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stderr}")
    return [line.rstrip() for line in done.stdout.splitlines()]


def _kept(output: list[str], parts: tuple[tuple[str, str], ...]) -> list[str]:
    """The parts of an output in their order, with `…` for the lines between them."""
    kept: list[str] = []
    at = 0
    for first, last in parts:
        begin = next(i for i in range(at, len(output)) if output[i].startswith(first))
        end = len(output) - 1
        if last:
            end = next(i for i in range(begin, len(output)) if output[i].startswith(last))
        kept += ["…"] * (begin > at) + output[begin : end + 1]
        at = end + 1
    return kept + ["…"] * (at < len(output))


def written(text: str) -> str:
    """The page `text` with the transcript between its markers written anew."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}```console\n{block()}```\n{END}{after}"


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote the transcript in {README}")
