"""The application: one command per file, with the help and the examples of each."""

import importlib
import re
from collections.abc import Sequence
from typing import cast

import typer

from autopart.errors import UsageError
from autopart.text import known_names

COMMANDS = (
    "profile",
    "profiles",
    "scale-profile",
    "probe",
    "calibrate",
    "clusters",
    "import",
    "import-plan",
    "bottleneck",
    "solve",
    "size",
    "show",
    "report",
    "explain",
    "compare",
    "simulate",
    "verify",
    "run",
    "validate",
    "export",
    "doctor",
)

_UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])
"""The base class for errors on wrong usage. Its module differs between typer releases."""

_NOT_ONE_OF = re.compile(r"Value error, '(?P<given>.*)' is not one of (?P<known>'.*')$")

_MAIN_PATH = """\
autopart cuts a PyTorch model into pipeline stages, and says how good they are.

  autopart profile model.py                  measures its layers: profile.json
  autopart solve --gpus 8 --nodes 2          finds the best plan: plan.json
  autopart run plan.json model.py --local    trains by the plan, on this machine

'autopart --help' lists all commands; 'autopart doctor' says what is missing."""
"""What `autopart` alone prints."""

_INTERRUPTED = 130
"""The code into which newer releases of typer turn Ctrl-C, without a word."""


def run_application(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    Raises UsageError where the command line is wrong, KeyboardInterrupt on Ctrl-C, and the errors of
    the command.
    """
    try:
        code = app()(args=list(arguments), prog_name="autopart", standalone_mode=False) or 0
    except typer.Abort:
        raise KeyboardInterrupt from None
    except _UsageError as error:
        path = getattr(getattr(error, "ctx", None), "command_path", "autopart")
        raise UsageError(f"{_usage(error)}; see '{path} --help'") from None
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    return code


def _usage(error: BaseException) -> str:
    message: str = error.format_message()  # pyright: ignore[reportAttributeAccessIssue]
    message = message.strip().rstrip(".")
    found = _NOT_ONE_OF.search(message)
    if found is None:
        return message
    # Typer's words for a choice have the name of an error's class in them, and no suggestion.
    known = known_names(found["given"], re.findall("'([^']*)'", found["known"]))
    return f"{message[: found.start()]}unknown '{found['given']}'; {known}"


def app() -> typer.Typer:
    """The application. The command NAME is `command` in `NAME_command.py`, with its help there; - becomes _."""
    application = typer.Typer(
        name="autopart",
        help="Cut a PyTorch model into pipeline stages, and say how good the cut is.",
        epilog="Example: autopart profile zoo:gpt2-tiny && autopart solve --gpus 8 --nodes 2",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"max_content_width": 100},
    )
    application.callback(invoke_without_command=True)(_root)
    for name in COMMANDS:
        module = importlib.import_module(f"autopart.cli.{name.replace('-', '_')}_command")
        application.command(name, epilog=f"Example: {module.EXAMPLE}")(module.command)
    return application


def _root(context: typer.Context, version: bool = typer.Option(False, "--version")) -> None:
    if version:
        from autopart.records.version import __version__

        typer.echo(f"autopart {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(_MAIN_PATH)
