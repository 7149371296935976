"""Literals and remarks in the files that are written."""

import json
from collections.abc import Iterable, Sequence

from autopart.plan import Plan


def one_line(text: str) -> str:
    """Text that can neither end the docstring nor the comment that it stands in."""
    return " ".join(text.split()).replace("\\", "/").replace('"""', "'''")


def mark(plan: Plan) -> str:
    """Who wrote a file, of what, and what the plan expected; `check_may_replace` looks for it."""
    return (
        f"Written by autopart {one_line(plan.origin.autopart)} for {one_line(plan.origin.model)}: "
        f"{len(plan.stages)} stages, schedule {one_line(plan.schedule)}, "
        f"{plan.num_microbatches} microbatches of {plan.microbatch_size}."
    )


def comments(plan: Plan, notes: Iterable[str] = ()) -> str:
    """`mark` and the notes as comment lines of YAML, TOML, shell or Python."""
    return "".join(f"# {line}\n" for line in (mark(plan), *notes))


def rows(items: Iterable[Sequence[str]], indent: int = 4) -> str:
    """A list of lists of strings, a line each; it reads alike in Python, TOML and YAML."""
    pad = " " * indent
    return "".join(f"{pad}{json.dumps(list(item))},\n" for item in items)
