"""The load of expert ranks that a user asks a solve to assume."""

from collections.abc import Sequence

import msgspec

from autopart.errors import AutopartError
from autopart.records.expert_load import MEASURED, AssumedLoad, LayerLoad, check_load
from autopart.records.rank_group import MOST_DEGREE
from autopart.search.options import SolveOptions


def assumed_load(options: SolveOptions) -> AssumedLoad | msgspec.UnsetType:
    """The load in a problem's words; unset for balanced load.

    Raises AutopartError where no expert degree is asked for, or where no ranks can have such a load.
    """
    asked = options.expert_imbalance
    if asked is None:
        return msgspec.UNSET
    if options.expert == "1":
        raise AutopartError(
            "--expert-imbalance is for GPUs that share experts; ask for some with --expert auto, or leave it out"
        )
    if isinstance(asked, str):
        if asked != MEASURED:
            raise AutopartError(
                f"--expert-imbalance '{asked}': write a number from 1 on, {MEASURED}, or the file of a run"
            )
        return MEASURED
    if isinstance(asked, Sequence):
        return _of_run(asked)
    most = _largest_degree(options.expert)
    if not 1 <= asked <= most:
        raise AutopartError(
            f"--expert-imbalance {asked:g}: the fullest GPU has from 1 to {most} times the mean load with expert degree {most}"
        )
    return float(asked) if asked > 1 else msgspec.UNSET


def _of_run(loads: Sequence[LayerLoad]) -> tuple[LayerLoad, ...]:
    """The loads that a run measured."""
    if not loads:
        raise AutopartError(
            "--expert-imbalance: the run exchanged no entries of experts; run a plan with an expert degree, or give a number"
        )
    for one in loads:
        check_load(one, "--expert-imbalance")
    return tuple(loads)


def _largest_degree(typed: str) -> int:
    """The largest expert degree that is asked for."""
    parts = typed.split(",")
    return max(map(int, parts)) if all(map(str.isdecimal, parts)) else MOST_DEGREE
