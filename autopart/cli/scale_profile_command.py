"""`autopart scale-profile`: a measured profile at another setting."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from autopart.cli.console import print_result, stdout_for_json, warn
from autopart.cli.option_groups import with_groups
from autopart.cli.output_files import check_may_write
from autopart.cli.shared_options import AsJson
from autopart.errors import UsageError
from autopart.records.built_in_profiles import profile_files
from autopart.records.kernels import TARGETS, kernels_of
from autopart.records.known_gpus import find_gpu
from autopart.records.profile import FORMAT, Profile, load_profile, save_profile
from autopart.report.profile_summary import profile_summary
from autopart.report.profile_table import profile_report
from autopart.text import counted

EXAMPLE = "autopart scale-profile gpt2.json --microbatch 8 -o gpt2-8.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class SettingOptions:
    """What changes; options that are left out stay as measured."""

    microbatch: Annotated[
        int | None, typer.Option(min=1, max=2**31, help="Samples per microbatch.")
    ] = None
    seq: Annotated[
        int | None,
        typer.Option(
            min=1, max=2**24, help="Positions of each sequence of whole numbers, such as token ids."
        ),
    ] = None
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, typer.Option(help="The dtype.")
    ] = None
    gpu: Annotated[str | None, typer.Option(help="The known GPU.")] = None
    blocks: Annotated[
        int | None,
        typer.Option(
            min=3, max=4096, help="Number of blocks; inner ones must be alike, and repeat."
        ),
    ] = None
    target: Annotated[
        str,
        typer.Option(help=f"The framework whose kernel model counts: {', '.join(TARGETS)}."),
    ] = "torch"


@with_groups
def command(
    *,
    profile: Annotated[
        Path,
        typer.Argument(metavar="PROFILE", help="A measured profile, or a built-in one's name."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The profile to write.")] = Path(
        "scaled.json"
    ),
    setting: SettingOptions,
    as_json: AsJson = False,
) -> None:
    """Scale a measured PROFILE to another microbatch, sequence, dtype, GPU, or number of blocks.

    Each layer's measured seconds are multiplied by the kernel model's ratio between both settings. Bytes are counted at the
    new setting, so the model must be here. The result is analytic, and says its assumptions.
    """
    check_may_write(output, FORMAT)
    file, *others = profile_files(profile)
    if others:
        raise UsageError(
            f"{profile} is {counted(1 + len(others), 'profile')}; name one of them, with -mbN"
        )
    with stdout_for_json(as_json=as_json):
        scaled = _scaled(load_profile(file), file.name, setting)
    save_profile(scaled, output)
    warn(scaled.warnings)
    summary = profile_summary(scaled, str(output))
    print_result(summary, profile_report(scaled), f"profile written to {output}", as_json=as_json)


def _scaled(measured: Profile, name: str, asked: SettingOptions) -> Profile:
    """Check what costs nothing first, then scale."""
    kernels_of(find_gpu(asked.gpu or "cpu"), asked.target)
    from autopart.scaling.blocks import repeat_blocks
    from autopart.scaling.settings import ScaledSetting, scale_to

    setting = ScaledSetting(asked.microbatch, asked.seq, asked.dtype, asked.gpu)
    if asked.blocks is not None:
        measured = measured if any(setting) else repeat_blocks(measured, asked.blocks)
    elif not any(setting):
        raise UsageError("nothing changes: give --microbatch, --seq, --dtype, --gpu or --blocks")
    if any(setting):
        scaled = scale_to(measured, name, setting, asked.target)
        return scaled if asked.blocks is None else repeat_blocks(scaled, asked.blocks)
    return measured
