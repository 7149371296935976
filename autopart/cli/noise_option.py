"""The options for `--noise`, and the steps that they draw."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from autopart.certificate.plan_problem import partition_of
from autopart.errors import AutopartError, PlanError, UsageError
from autopart.records.built_in_profiles import profile_files
from autopart.records.group_choice import graph_of
from autopart.records.plan import Plan, schedule_of, stage_ranks
from autopart.records.plan_degrees import stage_groups
from autopart.records.profile import load_profile, profile_hash
from autopart.report.step_summary import NoiseSummary, noise_summary
from autopart.simulator.compiled import runner_of
from autopart.simulator.noise import (
    Draws,
    Spread,
    distribution,
    even_spread,
    measured_spreads,
    noisy_makespans,
)
from autopart.units import format_share, parse_share


class Noise(NamedTuple):
    """The noise that `--noise` names."""

    share: float | None
    """Standard deviation over mean for every time, 0 to 1; None: the profile's own ranges."""


def parse_noise(text: str) -> Noise:
    """Read `5%`, `0.05` or `profile`."""
    if text == "profile":
        return Noise(None)
    try:
        return Noise(parse_share(text))
    except AutopartError:
        raise typer.BadParameter(
            f"'{text}' is no noise; write a share of the times from 0% to 100%, such as 5%, or 'profile'"
        ) from None


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseOptions:
    """`--noise`, and the options that shape its steps."""

    noise: Annotated[
        Noise | None,
        typer.Option(
            metavar="SHARE",
            parser=parse_noise,
            help="Also draw steps whose times vary: by a share, such as 5%, or by the measured ranges "
            "in --profile ('profile').",
        ),
    ] = None
    profile: Annotated[
        Path | None, typer.Option(help="The plan's profile, for --noise profile.")
    ] = None
    draws: Annotated[int, typer.Option(min=2, help="Number of steps to draw under --noise.")] = 1000
    seed: Annotated[
        int, typer.Option(min=0, help="Seed for --noise; equal seeds draw equal steps.")
    ] = 0


def draw_noise(plan: Plan, options: NoiseOptions) -> NoiseSummary | None:
    """Simulate steps under noise, and summarise their makespans; None without `--noise`.

    Raises UsageError where `--noise profile` comes without a profile, PlanError where the plan was
    made from another profile.
    """
    noise, draws, seed = options.noise, options.draws, options.seed
    if noise is None:
        return None
    if noise.share is None:
        spreads, asked = _profile_spreads(plan, options.profile), f"the ranges of {options.profile}"
    else:
        spreads = even_spread(noise.share, len(plan.stages))
        asked = f"{format_share(noise.share)} of every action and send"
    makespans = noisy_makespans(
        schedule_of(plan),
        stage_ranks(plan),
        plan.prediction.stages,
        plan.prediction.syncs,
        spreads,
        action_overhead=plan.cluster.action_overhead,
        runner=runner_of(
            sends_overlap=plan.cluster.sends_overlap,
            rendezvous=plan.cluster.sends == "rendezvous",
        ),
        draws=Draws(draws, seed),
    )
    return noise_summary(asked, draws, seed, distribution(makespans))


def _profile_spreads(plan: Plan, path: Path | None) -> tuple[Spread, ...]:
    if path is None:
        raise UsageError("--noise profile needs the plan's profile: name it with --profile")
    profiles = {profile_hash(one): one for one in map(load_profile, profile_files(path))}
    profile = profiles.get(plan.origin.profile_hash)
    if profile is None:
        raise PlanError(
            f"{path} is profile {' or '.join(profiles)}, the plan was made from "
            f"{plan.origin.profile_hash}; name that one, or give a share such as --noise 5%"
        )
    stages = zip(partition_of(plan, profile.graph), stage_groups(plan), strict=True)
    return measured_spreads(
        [[graph_of(profile, tensor).layers[at] for at in stage] for stage, tensor in stages]
    )
