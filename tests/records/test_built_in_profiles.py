"""Built-in profiles are found by name."""

from pathlib import Path

import pytest

from autopart.errors import ProfileError
from autopart.records import built_in_profiles as built_in
from autopart.records.built_in_profiles import built_in_profiles, find_built_in, profile_files

FILES = ("net-large-gpu-a-mb2", "net-large-gpu-b-mb2", "net-large-gpu-b-mb16", "net-gpu-b-mb1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four profiles by name alone, and two files that are none."""
    folder = tmp_path / "profiles"
    folder.mkdir()
    for name in (*FILES, "notes", "net-gpu-b-mbx"):
        (folder / f"{name}.json").touch()
    monkeypatch.setattr(built_in, "_files", lambda: [*folder.glob("*.json")])
    monkeypatch.chdir(tmp_path)
    return folder


def names(asked: str) -> list[str]:
    return [path.stem for path in profile_files(Path(asked))]


def test_sizes_are_listed_in_their_order(folder: Path) -> None:
    assert [(one.name, list(one.paths)) for one in built_in_profiles()] == [
        ("net-gpu-b", [1]),
        ("net-large-gpu-a", [2]),
        ("net-large-gpu-b", [2, 16]),
    ]


def test_a_name_or_its_first_words_mean_all_sizes(folder: Path) -> None:
    assert names("net-large-gpu-b") == ["net-large-gpu-b-mb2", "net-large-gpu-b-mb16"]
    assert names("net-gpu") == ["net-gpu-b-mb1"]
    assert names("net-large-gpu-b-mb16") == ["net-large-gpu-b-mb16"]


def test_a_name_for_several_and_for_none_is_refused_with_names(folder: Path) -> None:
    with pytest.raises(ProfileError, match="may be net-large-gpu-a or net-large-gpu-b"):
        find_built_in("net-large")
    with pytest.raises(ProfileError, match=r"no such file, and .* near names are net-gpu-b"):
        profile_files(Path("net-gpx-b"))
    with pytest.raises(ProfileError, match="no such file"):
        profile_files(Path("x" * 5000))
    with pytest.raises(ProfileError, match="'autopart profiles' lists them"):
        find_built_in("net-larg")


def test_a_file_wins_and_paths_stay_as_they_are(folder: Path) -> None:
    Path("net-gpu-b").touch()
    for asked in ("net-gpu-b", "gone.json", "some/net-large-gpu-b"):
        assert profile_files(Path(asked)) == (Path(asked),)


def test_without_the_files_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(built_in, "_files", tuple)
    assert built_in_profiles() == ()


def test_an_installation_has_them_among_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about, installed = tmp_path / "autopart-0.dist-info", tmp_path / "share/autopart/profiles"
    about.mkdir()
    installed.mkdir(parents=True)
    (installed / "net-gpu-a-mb2.json").touch()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: autopart\nVersion: 0\n")
    (about / "RECORD").write_text(
        "autopart/__init__.py,,\nshare/autopart/profiles/net-gpu-a-mb2.json,,\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    # The package stands in the environment, without profiles/ beside it.
    monkeypatch.setattr(built_in, "__file__", str(tmp_path / "autopart/records/found.py"))
    assert profile_files(Path("net-gpu-a")) == (installed / "net-gpu-a-mb2.json",)
