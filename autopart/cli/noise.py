"""The `--noise` option: how it is read, and the steps that it draws."""

from pathlib import Path
from typing import NamedTuple

import typer

from autopart.certificate import partition_of
from autopart.errors import AutopartError, PlanError, UsageError
from autopart.plan import Plan, schedule_of, stage_ranks
from autopart.profile import load_profile, profile_hash
from autopart.report.step_summary import NoiseSummary, noise_summary
from autopart.simulator.noise import (
    Spread,
    distribution,
    even_spread,
    measured_spreads,
    noisy_makespans,
)
from autopart.units import format_share, parse_share


class Noise(NamedTuple):
    """What `--noise` asks for."""

    share: float | None
    """Standard deviation over mean of every time, 0 to 1; None for the profile's own ranges."""


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


def draw_noise(
    plan: Plan, noise: Noise, profile: Path | None, *, draws: int, seed: int
) -> NoiseSummary:
    """Draw steps of a plan; raises UsageError where the profile's ranges are asked for without a
    profile, PlanError where it is another one."""
    if noise.share is None:
        spreads, asked = _profile_spreads(plan, profile), f"the ranges of {profile}"
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
        sends_overlap=plan.cluster.sends_overlap,
        draws=draws,
        seed=seed,
    )
    return noise_summary(asked, draws, seed, distribution(makespans))


def _profile_spreads(plan: Plan, path: Path | None) -> tuple[Spread, ...]:
    if path is None:
        raise UsageError("--noise profile needs the plan's profile: name it with --profile")
    profile = load_profile(path)
    if profile_hash(profile) != plan.origin.profile_hash:
        raise PlanError(
            f"{path} is profile {profile_hash(profile)}, the plan was made from "
            f"{plan.origin.profile_hash}; name that one, or give a share such as --noise 5%"
        )
    layers = profile.graph.layers
    return measured_spreads(
        [[layers[at] for at in stage] for stage in partition_of(plan, profile.graph)]
    )
