"""`autopart profile`: measure a model layer by layer."""

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from autopart.cli.console import check_may_write, print_result, progress_bar, warn
from autopart.cli.options import AsJson, ModelName, usage_checked
from autopart.profile import FORMAT, MAX_SPREAD, Profile, save_profile
from autopart.report.profile_table import profile_report
from autopart.report.summary import profile_summary
from autopart.units import parse_share

EXAMPLE = "autopart profile zoo:gpt2-tiny --microbatch-size 4 -o gpt2.json"


def command(
    model: ModelName,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Default: <model>-<device>-mb<size>.json here."),
    ] = None,
    microbatch_size: Annotated[int, typer.Option(min=1, help="Samples that flow together.")] = 1,
    dtype: Annotated[
        Literal["float32", "float64", "bfloat16", "float16"],
        typer.Option(help="Precision of parameters and activations."),
    ] = "float32",
    device: Annotated[
        Literal["cpu", "cuda", "meta"],
        typer.Option(help="Where to measure; 'meta' runs nothing and takes times from a roofline."),
    ] = "cpu",
    gpu: Annotated[
        str | None, typer.Option(help="The GPU whose roofline '--device meta' takes.")
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Runs before those that count.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Runs whose median counts.")] = 10,
    max_spread: Annotated[
        float | None,
        typer.Option(
            parser=usage_checked(parse_share),
            metavar="SHARE",
            help="Run more, at most three times --repeats, until the step scatters by less "
            f"[default: {MAX_SPREAD:.0%}].",
        ),
    ] = None,
    each: Annotated[
        bool, typer.Option("--each", help="Measure identical layers one by one all the same.")
    ] = False,
    granularity: Annotated[
        Literal["block", "module"],
        typer.Option(help="Layers are the repeated blocks, or every leaf module."),
    ] = "block",
    threads: Annotated[int, typer.Option(min=1, help="Compute threads, on a CPU.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Measure MODEL layer by layer and write a profile."""
    from autopart.runtime.execution.threads import use_threads
    from autopart.runtime.profiling.profiler import profile_model

    use_threads(threads)
    if output is not None:
        check_may_write(output, FORMAT)
    with progress_bar("capturing") as progress:
        profile = profile_model(
            model,
            microbatch_size=microbatch_size,
            dtype=dtype,
            device=device,
            gpu=gpu,
            warmup=warmup,
            repeats=repeats,
            max_spread=MAX_SPREAD if max_spread is None else max_spread,
            each=each,
            granularity=granularity,
            progress=progress,
        )
    path = output or Path(default_name(profile))
    check_may_write(path, FORMAT)
    save_profile(profile, path)
    warn(profile.warnings)
    summary = profile_summary(profile, str(path))
    print_result(summary, profile_report(profile), f"profile written to {path}", as_json=as_json)


def default_name(profile: Profile) -> str:
    """`<model>-<device>-mb<size>.json`; the device is `cpu`, or the GPU's name."""
    model = re.sub(r"\.py(?=:|$)", "", profile.source.model).removeprefix("zoo:")
    device = "cpu" if profile.device.kind == "cpu" else profile.device.name
    kind = "-analytic" if profile.method == "analytic" else ""
    words = (Path(model).name, f"{device}{kind}", f"mb{profile.microbatch_size}")
    return "-".join(_slug(word) for word in words) + ".json"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")
