"""How many GPUs of which kind, on the terminal: the front, and what is proven about all other numbers."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from autopart.records.size import FewestGpus, SizedCount, SizedKind, SizedPlan, Sizing
from autopart.report.columns import add_number, add_text, new_table
from autopart.text import counted, in_words
from autopart.units import format_gap, format_training

MOST_LISTED = 6
"""Numbers of GPUs that a line lists."""


def size_table(sizing: Sizing) -> Table:
    """One row for each point of the front, the fewest GPUs first."""
    table = new_table("the front of GPUs, days and cost")
    add_text(table, "GPU kind")
    add_number(table, "GPUs")
    add_number(table, "days")
    add_number(table, "cost $")
    add_number(table, "gap")
    add_text(table, "plan")
    add_text(table, "best in")
    for own in sizing.front:
        table.add_row(
            own.gpu,
            str(own.gpus),
            _days(own.training_seconds),
            f"{own.cost:,.0f}",
            format_gap(own.gap),
            plan_line(own),
            ", ".join(own.marks),
        )
    return table


def _days(seconds: float) -> str:
    days = seconds / 86400
    return f"{days:,.1f}" if days >= 1 else f"{days:.2g}"


def plan_line(own: SizedPlan) -> str:
    """`7 x 8, tensor 2, 1f1b, 2 samples`: stages x replicas, degree, schedule, samples per microbatch."""
    parts = [f"{own.num_stages} x {own.num_replicas}"]
    parts += [f"tensor {own.tensor}"] if own.tensor > 1 else []
    parts += [f"context {own.context}"] if own.context > 1 else []
    parts += [f"expert {own.expert}"] if own.expert > 1 else []
    parts += [f"shard {own.shard_degree}"] if own.shard_degree > 1 else []
    parts += [own.schedule, counted(own.microbatch_size, "sample")]
    parts += [f"{own.recomputed} recomputed"] if own.recomputed else []
    return ", ".join(parts)


def question_line(sizing: Sizing) -> str:
    """The training in words."""
    limits = [
        f" within {format_training(sizing.within_seconds)}" if sizing.within_seconds else "",
        f" for at most {sizing.budget:,.0f} dollars" if sizing.budget is not None else "",
    ]
    return (
        f"{sizing.tokens:.4g} tokens of {sizing.model} in {counted(sizing.num_steps, 'step')} of "
        f"{counted(sizing.global_batch, 'sample')} with {counted(sizing.tokens_per_sample, 'token')} each"
        f"{' and'.join(filter(None, limits))}"
    )


def proof_lines(sizing: Sizing) -> Iterator[str]:
    """For each GPU kind the fewest GPUs, and what is proven about fewer."""
    for kind in sizing.kinds:
        yield from _proof_lines(sizing, kind)


def _proof_lines(sizing: Sizing, kind: SizedKind) -> Iterator[str]:
    own = kind.fewest
    if own.no_memory:
        yield f"{kind.gpu}, proven: {_up_to(own.no_memory)} cannot hold the model"
    if own.too_slow > own.no_memory and sizing.within_seconds is not None:
        yield (
            f"{kind.gpu}, proven: {_up_to(own.too_slow)} cannot end within "
            f"{format_training(sizing.within_seconds)}{_by_bound(sizing, own)}"
        )
    found = "no number that was tried does" if own.gpus is None else f"{own.gpus} do"
    if own.undecided:
        yield (
            f"{kind.gpu}: {found}; not decided: {_listed(own.undecided)}; a larger --time-limit, or --counts with these "
            "numbers, may decide them"
        )
    elif own.gpus is not None:
        yield f"{kind.gpu}: {found}, and no fewer"


def _up_to(gpus: int) -> str:
    return counted(gpus, "GPU") if gpus == 1 else f"up to {counted(gpus, 'GPU')}"


def _by_bound(sizing: Sizing, own: FewestGpus) -> str:
    """The bound behind the proof, where it says more than the date itself."""
    if own.lower_bound is None or own.needed is None or own.lower_bound < own.needed * 1.0001:
        return ""
    return f"; they take {format_training(sizing.num_steps * own.lower_bound)} at least"


def left_out_lines(sizing: Sizing) -> Iterator[str]:
    """Numbers of GPUs that are not on the front, by the reason, where no proof of the fewest names them."""
    for verdict in ("too dear", "dominated", "undecided"):
        for kind in sizing.kinds:
            fewest = kind.fewest
            rows = [
                row
                for row in sizing.counts
                if row.gpu == kind.gpu
                and row.verdict == verdict
                and row.gpus not in fewest.undecided
            ]
            for reason in dict.fromkeys(row.reason for row in rows):
                yield _left_out_line(verdict, [row for row in rows if row.reason == reason])


def _left_out_line(verdict: str, rows: Sequence[SizedCount]) -> str:
    numbers = _listed([row.gpus for row in rows])
    lead = "not decided" if verdict == "undecided" else f"left out, {verdict}"
    return f"{lead}: {numbers} {rows[0].gpu}: {rows[0].reason}"


def _listed(numbers: Sequence[int]) -> str:
    """`152`, `8, 16 and 24`, or the first few and how many more."""
    if len(numbers) <= MOST_LISTED:
        return in_words(list(map(str, numbers)))
    first = ", ".join(map(str, numbers[: MOST_LISTED - 1]))
    return f"{first} and {len(numbers) - MOST_LISTED + 1} more up to {numbers[-1]}"
