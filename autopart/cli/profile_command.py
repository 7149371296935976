"""`autopart profile`: measure a model layer by layer."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from autopart.cli.console import print_result, progress_bar, stdout_for_json, warn
from autopart.cli.option_groups import with_groups
from autopart.cli.output_files import check_may_write
from autopart.cli.shared_options import MOST_THREADS, AsJson, ModelName, usage_checked
from autopart.errors import UsageError
from autopart.records.calibration import load_calibration
from autopart.records.kernels import TARGETS
from autopart.records.profile import FORMAT, MAX_SPREAD, Profile, save_profile
from autopart.report.profile_summary import profile_summary
from autopart.report.profile_table import profile_report
from autopart.units import parse_share

EXAMPLE = "autopart profile zoo:gpt2-tiny --microbatch-size 4 -o gpt2.json"


_MOST_POSITIONS = 1 << 24


def _degrees(option: str, text: str | None) -> tuple[int, ...]:
    """Return the degrees in text such as `1,2,4`. Raises UsageError for other text."""
    if text is None:
        return ()
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option} {text}: give degrees such as 1,2,4,8") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceOptions:
    """The device, its precision, and the size of a microbatch."""

    microbatch_size: Annotated[int, typer.Option(min=1, help="Samples per microbatch.")] = 1
    sequence_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=_MOST_POSITIONS,
            help="Positions per sequence of tokens; default: those of the model's example.",
        ),
    ] = None
    dtype: Annotated[
        Literal["float32", "float64", "bfloat16", "float16"] | None,
        typer.Option(
            help="Cast parameters, buffers and example data to this dtype; default: their own."
        ),
    ] = None
    device: Annotated[
        Literal["cpu", "cuda", "meta"],
        typer.Option(
            help="Where to measure; 'meta' runs nothing and computes times from a roofline."
        ),
    ] = "cpu"
    gpu: Annotated[
        str | None, typer.Option(help="The GPU whose roofline '--device meta' uses.")
    ] = None
    target: Annotated[
        str | None,
        typer.Option(
            help="With '--device meta': time kernels by size and shape, as this framework runs them: "
            f"{', '.join(TARGETS)}; default: one efficiency for all."
        ),
    ] = None
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With '--device meta': time kernels with the measured shares of this calibration.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuringOptions:
    """The measured runs, and the layers that they measure."""

    warmup: Annotated[int, typer.Option(min=0, help="Runs before the measured ones.")] = 2
    repeats: Annotated[int, typer.Option(min=1, help="Measured runs; their median counts.")] = 10
    max_spread: Annotated[
        float | None,
        typer.Option(
            parser=usage_checked(parse_share),
            metavar="SHARE",
            help="Measure up to three times --repeats, until the step varies by less than this share "
            f"[default: {MAX_SPREAD:.0%}].",
        ),
    ] = None
    each: Annotated[
        bool, typer.Option("--each", help="Measure identical layers one by one, too.")
    ] = False
    granularity: Annotated[
        Literal["block", "module"],
        typer.Option(help="Make a layer of each repeated block, or of every leaf module."),
    ] = "block"
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Time graphs under torch's compiler, for run --compile."),
    ] = False
    pairs: Annotated[
        bool,
        typer.Option(
            "--pairs", help="Time each layer's forward beside its backward, for overlapped pairs."
        ),
    ] = False
    threads: Annotated[
        int, typer.Option(min=1, max=MOST_THREADS, help="Compute threads, on a CPU.")
    ] = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorOptions:
    """The tensor, context and expert degrees for which one rank's layers are profiled too."""

    tensor: Annotated[
        str | None,
        typer.Option(
            metavar="DEGREES",
            help="Profile the layers of one of t ranks, too, for these tensor degrees, such as "
            "1,2,4,8.",
        ),
    ] = None
    sequence_parallel: Annotated[
        bool,
        typer.Option(
            "--sequence-parallel", help="Profile each degree with sequence parallelism as well."
        ),
    ] = False
    context: Annotated[
        str | None,
        typer.Option(
            metavar="DEGREES",
            help="Profile the layers of one of c ranks that share each sequence, too, for these context "
            "degrees, such as 2,4; also with each tensor degree.",
        ),
    ] = None
    expert: Annotated[
        str | None,
        typer.Option(
            metavar="DEGREES",
            help="Profile the layers of one of e ranks that share experts and samples, too, for these expert "
            "degrees, such as 2,4; also with each tensor and context degree.",
        ),
    ] = None


@with_groups
def command(
    *,
    model: ModelName,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The profile to write; default: <model>-<device>-mb<size>.json in this folder.",
        ),
    ] = None,
    device_options: DeviceOptions,
    measuring_options: MeasuringOptions,
    tensor_options: TensorOptions,
    as_json: AsJson = False,
) -> None:
    """Measure MODEL layer by layer and write a profile."""
    from autopart.runtime.measuring.threads import use_threads
    from autopart.runtime.profiling.profiler import profile_model

    use_threads(measuring_options.threads)
    if output is not None:
        check_may_write(output, FORMAT)
    given = device_options.calibrate
    calibration = None if given is None else load_calibration(given)
    max_spread = measuring_options.max_spread
    with stdout_for_json(as_json=as_json), progress_bar("capturing") as progress:
        profile = profile_model(
            model,
            microbatch_size=device_options.microbatch_size,
            sequence_length=device_options.sequence_length,
            dtype=device_options.dtype,
            device=device_options.device,
            gpu=device_options.gpu,
            target=device_options.target,
            calibration=calibration,
            warmup=measuring_options.warmup,
            repeats=measuring_options.repeats,
            max_spread=MAX_SPREAD if max_spread is None else max_spread,
            each=measuring_options.each,
            granularity=measuring_options.granularity,
            compile=measuring_options.compile,
            pairs=measuring_options.pairs,
            tensor=_degrees("--tensor", tensor_options.tensor),
            context=_degrees("--context", tensor_options.context),
            expert=_degrees("--expert", tensor_options.expert),
            sequence_parallel=tensor_options.sequence_parallel,
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
