"""Literals and remarks for exported files."""

from collections.abc import Iterable, Sequence

from autopart.records.plan import Plan
from autopart.text import counted, quoted, visible


def one_line(text: str) -> str:
    """Text that cannot end its docstring or comment, and that a terminal shows as it is."""
    # Escapes come before the slashes: a docstring would read `\\x1b` as the character itself.
    return visible(" ".join(text.split())).replace("\\", "/").replace('"', "'")


def mark(plan: Plan) -> str:
    """The mark: version, model, stages and schedule. `check_may_replace` looks for it."""
    return (
        f"Written by autopart {one_line(plan.origin.autopart)} for {one_line(plan.origin.model)}: "
        f"{counted(len(plan.stages), 'stage')}, schedule {one_line(plan.schedule)}, "
        f"{counted(plan.num_microbatches, 'microbatch')} of {plan.microbatch_size}."
    )


def comments(plan: Plan, notes: Iterable[str] = ()) -> str:
    """The mark and the notes as comment lines for YAML, TOML, shell or Python."""
    return "".join(f"# {line}\n" for line in (mark(plan), *map(one_line, notes)))


def rows(items: Iterable[Sequence[str]], indent: int = 4) -> str:
    """A list with string lists, one line each; valid Python, TOML and YAML."""
    pad = " " * indent
    return "".join(f"{pad}[{', '.join(map(quoted, item))}],\n" for item in items)
