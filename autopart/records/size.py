"""How many GPUs a training needs: the front of GPUs, days and cost, and what is proven about all other counts.

`autopart size -o` writes this record. Its plans are files of their own.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from autopart.errors import FileError
from autopart.records.files import read_file, write_record
from autopart.units import MOST_AMOUNT, Bytes, Count, PositiveCount, Seconds

FORMAT = "autopart-size"
VERSION = 1

Amount = Annotated[float, msgspec.Meta(ge=0.0, le=MOST_AMOUNT)]
PositiveAmount = Annotated[float, msgspec.Meta(gt=0.0, le=MOST_AMOUNT)]

Mark = Literal["cheapest", "fastest", "fewest"]
MARKS: tuple[Mark, ...] = ("cheapest", "fastest", "fewest")
Verdict = Literal["front", "no memory", "too slow", "too dear", "dominated", "undecided"]
"""What is known about a number of GPUs.

    front       its plan is on the front
    no memory   no plan fits
    too slow    no plan fits and meets the date
    too dear    no plan fits, meets the date and keeps to the budget
    dominated   no plan meets the limits and has fewer days, or less cost, than some plan with no more GPUs
    undecided   no plan was found, and bounds exclude none
"""


class SizedPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One point of the front: so many GPUs of a kind, and their best plan."""

    gpu: str
    """The GPU kind, as it was asked for."""
    gpus: PositiveCount
    """GPUs that are paid for."""
    nodes: PositiveCount
    """Nodes on which they are."""
    training_seconds: Amount
    """Seconds of the whole training: all steps."""
    cost: Amount
    """Dollars for the whole training."""
    step_time: Seconds
    """Seconds from step to step."""
    lower_bound: Seconds
    """Seconds from step to step that no plan on these GPUs can beat."""
    gap: Amount | None
    """`step_time` over `lower_bound`, minus 1; null where the bound is 0."""
    num_stages: PositiveCount
    """Stages of the plan."""
    num_replicas: PositiveCount
    """Replicas of the stage that has the most."""
    tensor: PositiveCount
    """Tensor degree; the largest one where stages have their own."""
    context: PositiveCount = 1
    """Context degree."""
    expert: PositiveCount = 1
    """Expert degree."""
    shard_degree: PositiveCount = 1
    """Shard degree; 1 without sharded state."""
    schedule: str
    """Name of the schedule."""
    microbatch_size: PositiveCount
    """Samples per microbatch."""
    recomputed: Count
    """Layers that are recomputed, as a whole or in part."""
    marks: tuple[Mark, ...] = ()
    """What the plan is best in, among all of the front."""
    file: str | msgspec.UnsetType = msgspec.UNSET
    """The plan's file; absent where none was written."""


class SizedCount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One number of GPUs of a kind, and what is known about it."""

    gpu: str
    """The GPU kind."""
    gpus: PositiveCount
    """GPUs that would be paid for."""
    verdict: Verdict
    """What is known."""
    lower_bound: Seconds | None
    """Seconds from step to step that no plan on these GPUs can beat; null where no plan fits."""
    bound_from: PositiveCount
    """The number of GPUs for which this bound was found; all plans of fewer whole nodes are among its plans."""
    step_time: Seconds | None = None
    """Seconds from step to step of the best plan found; null where none was found."""
    reason: str
    """The verdict in words."""


class FewestGpus(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How few GPUs of a kind do, and the proof that no fewer do."""

    gpus: PositiveCount | None
    """The fewest GPUs with a plan that meets the date; null where none was found."""
    no_memory: Count
    """Up to so many GPUs no plan fits; 0 where this is proven for none."""
    too_slow: Count
    """Up to so many GPUs no plan fits and meets the date; 0 where this is proven for none."""
    lower_bound: Seconds | None
    """Seconds from step to step that no plan on `too_slow` GPUs can beat; null where none fits, or nothing is proven."""
    needed: Amount | None
    """Seconds from step to step that meet the date; null without a date."""
    undecided: tuple[PositiveCount, ...]
    """Numbers of GPUs below the fewest of which nothing is proven."""


class SizedKind(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One GPU kind: its price and its nodes."""

    gpu: str
    """The GPU kind, as it was asked for."""
    price: PositiveAmount
    """Dollars per GPU hour."""
    gpus_per_node: PositiveCount
    """GPUs on a whole node."""
    memory_bytes: Bytes
    """Memory per GPU."""
    source: str
    """Where the cluster's figures come from."""
    profiles: tuple[str, ...]
    """The hash of each profile."""
    fewest: FewestGpus
    """The fewest GPUs that do."""


class Sizing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The answer to: how many GPUs of which kind, how many days, how much money."""

    format: Literal["autopart-size"] = FORMAT
    version: Literal[1] = VERSION
    model: str
    """The model as the user named it for the profile."""
    tokens: PositiveAmount
    """Tokens of the whole training."""
    tokens_per_sample: PositiveCount
    """Tokens in one sample."""
    global_batch: PositiveCount
    """Samples per step, on any number of GPUs."""
    num_steps: PositiveCount
    """Steps of the whole training; the last one may be partly empty."""
    within_seconds: Amount | None
    """Seconds in which the training must end; null without a date."""
    budget: PositiveAmount | None
    """Dollars that the training may cost; null without a budget."""
    objective: Literal["step", "period"]
    """The seconds that plans minimise, and the time from step to step."""
    kinds: tuple[SizedKind, ...]
    """The GPU kinds, in the order of the question."""
    front: tuple[SizedPlan, ...]
    """Plans of which none is at least as good as another in GPUs, days and cost; fewest GPUs first."""
    counts: tuple[SizedCount, ...]
    """Every number of GPUs that was looked at, by kind."""
    seconds: Seconds
    """Seconds that the search took."""
    autopart: str
    """The autopart version."""


def load_sizing(path: Path | str) -> Sizing:
    """Read a sizing's file; raises FileError, also where it speaks of GPU kinds that it does not list."""
    sizing = read_file(Path(path), Sizing, FORMAT, VERSION)
    listed = {kind.gpu for kind in sizing.kinds}
    for place in ("front", "counts"):
        for at, one in enumerate(getattr(sizing, place)):
            if one.gpu not in listed:
                raise FileError(
                    f"{path}: $.{place}[{at}].gpu: '{one.gpu}' is none of the file's GPU kinds"
                )
    return sizing


def save_sizing(sizing: Sizing, path: Path | str) -> None:
    """Write a sizing's file, whole or not at all; raises FileError where it could not be read again."""
    write_record(Path(path), sizing, FORMAT, VERSION)
