"""The command line: read, one public call, write, print.

Exit codes: 0 done, 1 an error that the user can mend, 2 wrong usage, 3 no plan exists,
4 the target of an export cannot express the plan.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import cast

import typer

from autopart.errors import AutopartError

COMMANDS = (
    "profile",
    "probe",
    "import",
    "bottleneck",
    "solve",
    "show",
    "simulate",
    "verify",
    "run",
    "validate",
    "export",
)

_UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])
"""The base of every complaint about usage; typer releases differ in the module it comes from."""

INTERRUPTED = 130
"""What a shell calls a program that was stopped from the keyboard (128 + SIGINT)."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line, `sys.argv` by default, and exit with its code."""
    sys.exit(exit_code(arguments))


def exit_code(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; errors are one line on stderr."""
    given = None if arguments is None else list(arguments)
    try:
        return app()(args=given, prog_name="autopart", standalone_mode=False) or 0
    except AutopartError as error:
        return _complain(str(error), error.exit_code)
    except typer.Abort:
        return _complain("stopped from the keyboard", INTERRUPTED)
    except _UsageError as error:
        return _complain(f"{_usage(error)}; see 'autopart --help'", 2)


def _usage(error: BaseException) -> str:
    message: str = error.format_message()  # pyright: ignore[reportAttributeAccessIssue]
    return message.strip().rstrip(".")


def _complain(message: str, code: int) -> int:
    """One line, whatever line breaks a quoted message brings along."""
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    sys.stderr.write(f"error: {line}\n")
    return code


def app() -> typer.Typer:
    """The commands; each stands in the file of its name, and says its own help."""
    application = typer.Typer(
        name="autopart",
        help="Cut a PyTorch model into pipeline stages, and say how good the cut is.",
        epilog="Example: autopart profile zoo:gpt2-tiny && autopart solve --gpus 8 --nodes 2",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"max_content_width": 100},
    )
    application.callback(invoke_without_command=True)(_root)
    for name in COMMANDS:
        module = importlib.import_module(f"autopart.cli.{name}_command")
        application.command(name, epilog=f"Example: {module.EXAMPLE}")(module.command)
    return application


def _root(context: typer.Context, version: bool = typer.Option(False, "--version")) -> None:
    if version:
        from autopart import __version__

        typer.echo(f"autopart {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
