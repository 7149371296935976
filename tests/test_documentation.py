"""What the documents say is so: commands exist, code runs, links lead somewhere, schemas are current."""

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import jsonschema
import pytest

import autopart
from autopart.cli import COMMANDS, exit_code
from autopart.importers import FORMATS
from autopart.plan import save_plan
from autopart.profile import save_profile
from tests.samples import sample_plan, sample_profile

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])

FOREIGN = ("import", "bottleneck")
"""Commands that read another planner's file."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    language: str
    text: str


def _blocks(language: str, pages: list[Path] = PAGES) -> list[Block]:
    return [
        Block(page, language, match[2])
        for page in pages
        for match in _FENCE.finditer(page.read_text(encoding="utf-8"))
        if match[1] == language
    ]


def _command_lines() -> Iterator[tuple[Path, list[str]]]:
    """Every command line in a bash block, as words."""
    for block in _blocks("bash"):
        for line in block.text.replace("\\\n", " ").splitlines():
            if line.strip():
                yield block.page, shlex.split(line, comments=True)


def _autopart_lines() -> list[tuple[Path, list[str]]]:
    """The arguments of every `autopart …` and `torchrun … -m autopart …`."""
    found: list[tuple[Path, list[str]]] = []
    for page, words in _command_lines():
        if "autopart" in words:
            found.append((page, words[words.index("autopart") + 1 :]))
    return found


def _named(item: object) -> str:
    return item.name if isinstance(item, Path) else " ".join(item) if isinstance(item, list) else ""


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_schemas_are_those_of_the_code() -> None:
    expected = _script("write_schemas").schemas()
    there = {path.name: path.read_bytes() for path in (ROOT / "docs" / "schemas").iterdir()}
    assert there == expected, "run scripts/write_schemas.py"


def test_the_schemas_accept_what_is_written_and_refuse_what_is_not(tmp_path: Path) -> None:
    import json

    save_plan(sample_plan(), tmp_path / "plan.json")
    save_profile(sample_profile(), tmp_path / "profile.json")
    for name in ("plan", "profile"):
        schema = json.loads((ROOT / "docs" / "schemas" / f"{name}.json").read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        content = json.loads((tmp_path / f"{name}.json").read_text())
        jsonschema.validate(content, schema)
        for wrong in (content | {"version": 99}, content | {"colour": "red"}, {}):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(wrong, schema)


def test_every_command_is_in_the_readme() -> None:
    shown = {words[0] for page, words in _autopart_lines() if page.name == "README.md"}
    assert shown == set(COMMANDS)


@pytest.mark.parametrize(("page", "words"), _autopart_lines(), ids=_named)
def test_a_command_line_in_the_documents_uses_options_that_exist(
    page: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert words[0] in COMMANDS
    assert words[0] != "import" or words[1] in FORMATS
    assert exit_code([words[0], "--help"]) == 0
    known = set(re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", capsys.readouterr().out))
    given = {word.partition("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
    assert given <= known, f"{page.name}: {given - known}"


def test_every_public_name_is_in_the_page_on_python() -> None:
    text = _FENCE.sub("", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"))
    code = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", text))))
    assert {name for name in autopart.__all__ if not name.startswith("_")} <= code


def test_every_script_that_is_named_is_there() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"scripts/[\w./-]*\w", text))
    assert {"scripts/quickstart", "scripts/test"} <= named
    for name in named:
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in _anchors(target), f"{page.name}: {link}"


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).strip().replace(" ", "-") for text in headings}


def test_every_page_of_docs_is_reached_from_the_readme() -> None:
    found, ahead = set[Path](), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in found or page.suffix != ".md" or not page.is_file():
            continue
        found.add(page)
        links = _LINK.findall(page.read_text(encoding="utf-8"))
        ahead += [(page.parent / link.partition("#")[0]).resolve() for link in links]
    assert {page for page in PAGES if page.parent.name == "docs"} <= found


@pytest.mark.parametrize("page", sorted({block.page for block in _blocks("python")}), ids=_named)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    """A block that opens with `# name.py` is that file; `plan.json` and `profile.json` are there."""
    save_plan(sample_plan(), tmp_path / "plan.json")
    save_profile(sample_profile(), tmp_path / "profile.json")
    program = ""
    for block in _blocks("python", [page]):
        named = re.match(r"# (\w+\.py)\n", block.text)
        if named:
            (tmp_path / named[1]).write_text(block.text)
        program += block.text + "\n"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_commands_of_the_readme_do_what_they_say(tmp_path: Path) -> None:
    """In order, on the model file that the README shows; some need another planner's file."""
    model = next(block.text for block in _blocks("python") if block.text.startswith("# model.py"))
    (tmp_path / "model.py").write_text(model)
    for page, words in _command_lines():
        if page.name != "README.md" or words[0] != "autopart" or words[1] in FOREIGN:
            continue
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr}"
    made = {path.name for path in tmp_path.iterdir()}
    assert made >= {"profile.json", "plan.json", "exported", "llama.json", "llama-plan.json"}
