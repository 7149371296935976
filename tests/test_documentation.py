"""The documents are true: commands exist, code runs, links work, schemas are current."""

import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jsonschema
import pytest

import autopart
from autopart.cli.application import COMMANDS
from autopart.cli.main import exit_code
from autopart.peers.formats import FORMATS
from autopart.records.cluster import save_cluster
from autopart.records.plan import save_plan
from autopart.records.profile import save_profile
from autopart.search.options import SolveOptions
from tests.support.places import ROOT
from tests.support.samples import sample_cluster, sample_plan, sample_profile
from tests.support.scripts import load_script

README = ROOT / "README.md"
PAGES = sorted(
    [
        README,
        ROOT / "CHANGELOG.md",
        ROOT / "profiles" / "README.md",
        *(ROOT / "docs").glob("*.md"),
    ]
)

PEERS = ("import", "bottleneck")
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


@pytest.mark.slow
def test_the_schemas_equal_those_generated_from_the_code() -> None:
    expected = load_script("write_schemas").schemas()
    there = {path.name: path.read_bytes() for path in (ROOT / "docs" / "schemas").iterdir()}
    assert there == expected, "run scripts/write_schemas.py"


@pytest.mark.slow
def test_the_schemas_accept_written_files_and_refuse_changed_ones(tmp_path: Path) -> None:
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
    shown = {words[0] for page, words in _autopart_lines() if page == README}
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


def test_every_named_script_exists() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"scripts/[\w./-]*\w", text))
    assert {"scripts/quickstart", "scripts/test"} <= named
    for name in named:
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_links_lead_to_existing_files_and_headings(page: Path) -> None:
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


def test_every_page_in_docs_is_linked_from_the_readme_or_its_pages() -> None:
    found, ahead = set[Path](), [README]
    while ahead:
        page = ahead.pop()
        if page in found or page.suffix != ".md" or not page.is_file():
            continue
        found.add(page)
        links = _LINK.findall(page.read_text(encoding="utf-8"))
        ahead += [(page.parent / link.partition("#")[0]).resolve() for link in links]
    assert {page for page in PAGES if page.parent.name == "docs"} <= found


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in _blocks("python")}), ids=_named)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    """A block that starts with `# name.py` is that file; `plan.json` and `profile.json` exist."""
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
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


def test_the_page_on_solving_names_every_option_and_every_keyword(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (ROOT / "docs" / "solving.md").read_text(encoding="utf-8")
    assert exit_code(["solve", "--help"]) == 0
    options = set(re.findall(r"^  (?:-\w, )?(--[a-z0-9-]+)", capsys.readouterr().out, re.MULTILINE))
    assert len(options) > 30
    for option in options - {"--help", "--output"}:
        assert re.search(rf"{option}(?![\w-])", page), option
    code = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", _FENCE.sub("", page)))))
    assert {field.name for field in dataclasses.fields(SolveOptions)} <= code


@pytest.mark.slow
def test_a_console_block_shows_real_output_of_its_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line `…` stands for lines that the page leaves out."""
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    blocks = _blocks("console")
    assert any(block.page == README for block in blocks)
    for block in blocks:
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            assert exit_code(shlex.split(command)[1:]) == 0
            printed = "\n" + "".join(
                f"{x.rstrip()}\n" for x in capsys.readouterr().out.splitlines()
            )
            for lines in re.split(r"^…\n", shown, flags=re.MULTILINE):
                _, found, printed = printed.partition("\n" + lines)
                assert found, f"{block.page.name}: {command} does not print\n{lines}"
                printed = "\n" + printed


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # as outside of a test
@pytest.mark.timeout(3600)  # beside 30 busy processes they took over half an hour
def test_the_commands_of_the_readme_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They run in order on the README's model file, except those that need another planner's file.

    They run in this process, which has imported torch already. Ranks have processes of their own.
    """
    monkeypatch.chdir(tmp_path)
    model = next(block.text for block in _blocks("python") if block.text.startswith("# model.py"))
    (tmp_path / "model.py").write_text(model)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    # A probe under torchrun would write this file on a cluster.
    save_cluster(sample_cluster(2, 4), tmp_path / "cluster.json")
    for page, words in _command_lines():
        if page == README and words[0] == "autopart" and words[1] not in PEERS:
            assert exit_code(words[1:]) == 0, f"{shlex.join(words)}\n{capsys.readouterr().err}"
    made = {path.name for path in tmp_path.iterdir()}
    assert made >= {"profile.json", "plan.json", "exported", "llama.json", "trace.json"}


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_commands_of_the_page_on_solving_succeed(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    found = [
        words
        for page, words in _command_lines()
        if page.name == "solving.md"
        if words[:2] == ["autopart", "solve"] and any(w.startswith("profiles/") for w in words)
    ]
    assert len(found) > 5
    for words in found:
        _run(words, tmp_path)


def _run(words: list[str], folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr}"
