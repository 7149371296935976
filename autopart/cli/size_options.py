"""The options of `autopart size`, as users type them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from autopart.cli.shared_options import usage_checked
from autopart.errors import UsageError
from autopart.search.size_options import COUNTS, SECONDS_PER_DAY, SizeOptions
from autopart.units import parse_duration

_DURATION = usage_checked(parse_duration)


@dataclass(frozen=True, kw_only=True, slots=True)
class SizingOptions:
    """The limits of the training, the numbers of GPUs to try, and the files to write."""

    within: Annotated[
        float | None,
        typer.Option(
            metavar="TIME",
            parser=_DURATION,
            help="Time in which the training must end: 30d, 12h, 2w; default: any.",
        ),
    ] = None
    budget: Annotated[
        float | None,
        typer.Option(metavar="DOLLARS", help="Dollars that it may cost; default: any."),
    ] = None
    tokens_per_sample: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens in one sample; default: the length of the model's input of token ids.",
        ),
    ] = None
    counts: Annotated[
        str,
        typer.Option(
            metavar=f"{'|'.join(COUNTS)}|N,N,...",
            help="Numbers of GPUs to try. powers: even parts of a node, and powers of two of whole nodes; auto: also "
            "all whole nodes among which the fewest are; nodes: any number of whole nodes; dividing: those that divide "
            "the batch.",
        ),
    ] = "auto"
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="GPUs on a whole node; default: as the GPU comes.")
    ] = None
    most_gpus: Annotated[int, typer.Option(min=1, help="The most GPUs that are tried.")] = 1024
    count_limit: Annotated[
        float,
        typer.Option(min=0.0, help="Seconds for one number of GPUs; --time-limit is for all."),
    ] = 10.0
    plans: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write each plan of the front into this folder."),
    ] = None
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the answer into this file.")
    ] = None


def size_options(tokens: float, given: SizingOptions) -> SizeOptions:
    """The options as the search takes them."""
    return SizeOptions(
        tokens=tokens,
        tokens_per_sample=given.tokens_per_sample,
        within_days=None if given.within is None else given.within / SECONDS_PER_DAY,
        budget=given.budget,
        counts=given.counts,
        gpus_per_node=given.gpus_per_node,
        most_gpus=given.most_gpus,
        count_limit=given.count_limit,
    )


def parse_prices(texts: Sequence[str]) -> dict[str, float]:
    """Read `h100-sxm=2.5,a100-sxm-80gb=1.4`; raises UsageError where a price is missing or no number."""
    prices: dict[str, float] = {}
    for part in ",".join(texts).split(","):
        name, equals, text = (piece.strip() for piece in part.rpartition("="))
        if not equals or not name:
            raise UsageError(
                f"'{part.strip()}' has no price; write dollars per GPU hour: --gpu {part.strip() or 'h100-sxm'}=2.5"
            )
        try:
            price = float(text)
        except ValueError:
            raise UsageError(
                f"'{text}' is no price of {name}; write for example {name}=2.5"
            ) from None
        if name in prices:
            raise UsageError(f"{name} has two prices; give each GPU kind once")
        prices[name] = price
    return prices
