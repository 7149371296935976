"""Days of two trainings that a paper publishes, beside those of `autopart.size`.

    python scripts/compare_trainings.py --profiles FOLDER

Narayanan et al. (SC 2021, section 5.1): GPT-3 with 175B parameters and 300B tokens takes 34 days on 1,024 A100, and a GPT with
1T parameters and 450B tokens 84 days on 3,072. The paper computes both from measured rates of 140 and 163 TFLOPs per GPU.

Profiles are analytic, calibrated by the share of products that scripts/compare_analytic.py fits to three rows of the paper's
Table 1. Of these, 1008.0B is one of the two models here; 175B is held out. Not stated are microbatches, here 1, and stages. So
the tool chooses the stages, under the paper's degree 8 and full recompute. Nothing was measured here.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import msgspec
from compare_analytic import GPU, Model, profiled
from repeated_blocks import with_blocks

import autopart
from autopart.records.kernels import kernels_of
from autopart.records.known_gpus import find_gpu

PRODUCTS = 0.757
"""Share of the peak rate that products reach: fitted by compare_analytic.py to Table 1's 1.7B, 76.1B and 1008.0B."""
DEGREE, TOKENS_PER_SAMPLE, SECONDS_PER_DAY = 8, 2048, 86400.0


class Training(NamedTuple):
    """One published training."""

    name: str
    width: int
    heads: int
    blocks: int
    batch: int
    tokens: float
    gpus: int
    days: float


TRAININGS = (
    Training("175B", 12288, 96, 96, 1536, 300e9, 1024, 34.0),
    Training("1008B", 25600, 160, 128, 3072, 450e9, 3072, 84.0),
)


def sized(own: Training, folder: Path, seconds: float) -> autopart.SizedPlans:
    """The best plan on the published number of GPUs."""
    table = kernels_of(find_gpu(GPU), "megatron")
    shares = msgspec.structs.replace(table.shares, products=PRODUCTS)
    kernels = msgspec.structs.replace(table, shares=shares)
    model = Model(f"{own.name}-sc21", own.width, own.heads, TOKENS_PER_SAMPLE, 1, DEGREE)
    three = profiled(model, kernels, f"sc21 products {PRODUCTS}", folder)
    return autopart.size(
        with_blocks(three, own.blocks),
        {"dgx-a100": 1.0},
        tokens=own.tokens,
        tokens_per_sample=TOKENS_PER_SAMPLE,
        global_batch=own.batch,
        counts=str(own.gpus),
        count_limit=seconds,
        time_limit=seconds,
        target="megatron",
        schedule="1f1b,interleaved-1f1b",
        tensor=DEGREE,
        sequence_parallel="off",
        recompute="always",
    )


def main() -> None:
    """Print one row for each training."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--profiles", type=Path, default=Path("analytic-profiles"), metavar="FOLDER"
    )
    parser.add_argument("--time-limit", type=float, default=60.0)
    asked = parser.parse_args()
    asked.profiles.mkdir(exist_ok=True, parents=True)
    print("| training | GPUs | published days | days | off | gap | plan |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for own in TRAININGS:
        (best,) = sized(own, asked.profiles, asked.time_limit).sizing.front
        days = best.training_seconds / SECONDS_PER_DAY
        gap = "unknown" if best.gap is None else f"{best.gap:.1%}"
        print(
            f"| {own.name}, {own.tokens / 1e9:.0f}B tokens | {own.gpus} | {own.days:.0f} | {days:.1f} | "
            f"{days / own.days - 1:+.1%} | {gap} | {best.num_stages} stages, {best.num_replicas} replicas, {best.schedule} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
