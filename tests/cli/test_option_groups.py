from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from autopart.cli.option_groups import with_groups


@dataclass(frozen=True, kw_only=True)
class Size:
    """A group of two options."""

    width: Annotated[int, typer.Option(min=1, help="Columns.")] = 2
    height: int = 3


def _run(*arguments: str) -> str:
    application, seen = typer.Typer(), list[object]()

    @with_groups
    def command(*, name: str = "box", size: Size, as_json: bool = False) -> None:
        """Draw a box."""
        seen.append((name, size, as_json))

    application.command()(command)
    result = CliRunner().invoke(application, arguments)
    return f"{result.exit_code} {seen}\n{result.output}"


def test_a_group_arrives_as_a_record_with_typed_values_and_defaults() -> None:
    given = _run("--height", "7", "--as-json")
    assert given.startswith("0 [('box', Size(width=2, height=7), True)]")


def test_the_help_lists_the_options_of_a_group_in_its_place() -> None:
    text = _run("--help")
    assert "Draw a box." in text
    places = [text.index(word) for word in ("--name", "--width", "--height", "--as-json")]
    assert places == sorted(places)
    assert "Columns." in text


def test_a_refused_value_in_a_group_is_wrong_usage() -> None:
    assert _run("--width", "0").startswith("2 []")


@dataclass(frozen=True, kw_only=True)
class Needed:
    """A group whose option has no default."""

    depth: Annotated[int, typer.Option(help="Layers.")]


def test_an_option_without_a_default_must_be_given_and_shows_none() -> None:
    application = typer.Typer()

    @with_groups
    def command(*, needed: Needed) -> None:
        """Dig."""
        assert needed == Needed(depth=3)

    application.command()(command)
    assert CliRunner().invoke(application, ["--depth", "3"]).exit_code == 0
    missing = CliRunner().invoke(application, [])
    assert missing.exit_code == 2 and "--depth" in missing.output
    assert "MISSING" not in CliRunner().invoke(application, ["--help"]).output
