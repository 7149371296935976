import os
from pathlib import Path

import msgspec
import pytest

from autopart.errors import FileError, ProfileError
from autopart.files import encode
from autopart.graph import LayerGraph
from autopart.profile import (
    WholeModel,
    load_profile,
    newest_profile,
    profile_hash,
    save_profile,
    stash_error,
    time_error,
)
from tests.problems import chain_graph, layer, profile

ROW = chain_graph(layer("a", stash_bytes=3), layer("b", forward_spread=0.1))


def altered(tmp_path: Path, old: str, new: str) -> Path:
    path = tmp_path / "profile.json"
    text = encode(profile(ROW)).decode()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def test_a_profile_survives_its_file(tmp_path: Path):
    save_profile(profile(ROW), tmp_path / "deep" / "profile.json")
    assert load_profile(tmp_path / "deep" / "profile.json") == profile(ROW)
    assert os.listdir(tmp_path / "deep") == ["profile.json"]


def test_equal_profiles_have_equal_hashes_and_others_do_not():
    assert profile_hash(profile(ROW)) == profile_hash(profile(ROW))
    other = msgspec.structs.replace(profile(ROW), microbatch_size=2)
    assert profile_hash(other) != profile_hash(profile(ROW))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(FileError, match=r"nothing\.json: there is no such file"):
        load_profile(tmp_path / "nothing.json")
    with pytest.raises(FileError, match="cannot be read"):
        load_profile(tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path):
    path = tmp_path / "profile.json"
    path.write_bytes(encode(profile(ROW))[:200])
    with pytest.raises(FileError, match="not a whole autopart-profile file"):
        load_profile(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version": 1', '"version": 2', "version 2; this autopart reads version 1"),
        ("autopart-profile", "autopart-plan", "its format is 'autopart-plan'"),
        ('"forward_time": 1.0', '"forward_time": -1.0', r"`float` >= 0.*layers\[0\]\.forward_time"),
        ('"forward_time": 1.0', '"forward_time": NaN', "not a whole autopart-profile file"),
        ('"forward_time": 1.0', '"forward_time": "1"', r"Expected `float`, got `str`"),
        ('"forward_time"', '"forwards_time"', "unknown field `forwards_time`"),
        ('"dtype": "float32",', "", "missing required field `dtype`"),
        ('"consumers": [\n     "b"', '"consumers": [\n     "x"', "names an unknown layer 'x'"),
    ],
)
def test_a_profile_that_is_wrong_says_where(tmp_path: Path, old: str, new: str, message: str):
    with pytest.raises(FileError, match=message):
        load_profile(altered(tmp_path, old, new))


def test_a_profile_that_contradicts_itself_is_not_written(tmp_path: Path):
    with pytest.raises(ProfileError):
        save_profile(profile(LayerGraph(layers=())), tmp_path / "profile.json")
    assert os.listdir(tmp_path) == []


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        save_profile(profile(ROW), tmp_path / "file" / "profile.json")


def test_the_newest_profile_of_a_folder_is_found_among_other_files(tmp_path: Path):
    with pytest.raises(ProfileError, match="no profile here; make one with"):
        newest_profile(tmp_path)
    for age, name in enumerate(["old.json", "new.json"]):
        save_profile(profile(ROW), tmp_path / name)
        os.utime(tmp_path / name, (age, age))
    (tmp_path / "plan.json").write_text('{"format": "autopart-plan"}')
    assert newest_profile(tmp_path).name == "new.json"


def test_the_distance_from_the_whole_model_is_a_signed_share():
    whole = WholeModel(
        forward_time=1.0,
        backward_time=3.0,
        layers_forward_time=1.1,
        layers_backward_time=3.3,
        stash_bytes=100,
        layers_stash_bytes=98,
    )
    assert time_error(whole) == pytest.approx(0.1)
    assert stash_error(whole) == pytest.approx(-0.02)
