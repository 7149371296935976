import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autopart.errors import FileError, ProfileError
from autopart.records.files import encode
from autopart.records.graph_check import MOST_LAYERS, check_graph
from autopart.records.layer_graph import LayerGraph, TiedParameter, Value
from autopart.records.profile import (
    WholeModel,
    load_profile,
    newest_profile,
    profile_hash,
    save_profile,
    stash_error,
    time_error,
)
from tests.support.places import ROOT
from tests.support.problems import chain_graph, layer, profile
from tests.support.shared_data import CASES

OF_VERSION_1 = ROOT / "tests" / "golden" / "profiles"

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
        (
            '"version": 4',
            '"version": 5',
            "version 5; this autopart reads version 1 and 2 and 3 and 4",
        ),
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
    assert newest_profile(tmp_path) == (tmp_path / "new.json", ())


def test_entries_of_a_folder_that_cannot_be_read_are_skipped_and_told(tmp_path: Path):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ProfileError, match=r"no profile here \(folder.json: skipped"):
        newest_profile(tmp_path)
    save_profile(profile(ROW), tmp_path / "p.json")
    found = newest_profile(tmp_path)
    assert found.path == tmp_path / "p.json"
    assert found.skipped == (
        "folder.json: skipped, it is no ordinary file",
        "link.json: skipped, it cannot be read: No such file or directory",
        "pipe.json: skipped, it is no ordinary file",
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([{"name": "v"}, {"name": "v"}], "value 'v' appears twice"),
        ([{"consumers": ()}], "value 'v0' has no consumers"),
        ([{"consumers": ("b", "b")}], "layer 'b' appears twice among the consumers of value 'v0'"),
        ([{"kept_by": ("b", "b")}], "layer 'b' appears twice among the kept_by of value 'v0'"),
        ([{"part_of": "v1"}, {"part_of": "v0"}], "value 'v0' is part of itself, over 'v1'"),
        ([{"bytes": 2**49}] * 3, "bytes in all; at most 1125899906842624 are planned for"),
    ],
)
def test_values_that_contradict_each_other_are_refused(values: list[dict[str, Any]], message: str):
    plain = {"producer": "a", "consumers": ("b",), "bytes": 8, "has_gradient": True}
    made = tuple(Value(**(plain | {"name": f"v{at}"} | one)) for at, one in enumerate(values))
    with pytest.raises(ProfileError, match=message):
        check_graph(LayerGraph(layers=ROW.layers, values=made))


def test_a_tied_parameter_that_no_layer_reads_is_refused():
    tied = TiedParameter(name="w", layers=(), param_bytes=8, grad_bytes=8, num_trainable=2)
    with pytest.raises(ProfileError, match="tied parameter 'w' is read by no layer; leave it out"):
        check_graph(LayerGraph(layers=ROW.layers, tied=(tied,)))


def test_absurd_numbers_of_layers_and_of_trained_elements_are_refused(tmp_path: Path):
    many = tuple(layer(f"l{at}") for at in range(MOST_LAYERS + 1))
    with pytest.raises(ProfileError, match="2501 layers are too many"):
        check_graph(LayerGraph(layers=many))
    with pytest.raises(FileError, match=r"Expected `int` <= \d+ - at `\$.graph.layers\[0\].num_t"):
        load_profile(altered(tmp_path, '"num_trainable": 0', f'"num_trainable": {2**63}'))
    large = tuple(layer(f"l{at}", num_trainable=2**50) for at in range(2))
    with pytest.raises(ProfileError, match="trained elements in all"):
        check_graph(LayerGraph(layers=large))


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


HASHES_OF_VERSION_1 = {"gpt2-tiny": "62c2e582cca9c988", "llama-8b": "b1f2c09358d7cb63"}
"""As plans name them that were made when version 1 was written."""

OLD_PROFILES = [*OF_VERSION_1.glob("*.json"), *CASES.glob("*.profile.json")]


@pytest.mark.parametrize("path", OLD_PROFILES, ids=lambda path: path.name)
def test_a_profile_of_version_1_loads_and_keeps_its_hash_in_version_4(path: Path, tmp_path: Path):
    old = json.loads(path.read_text())
    assert old["version"] == 1
    loaded = load_profile(path)
    for layer_of_1, now in zip(old["graph"]["layers"], loaded.graph.layers, strict=True):
        assert layer_of_1["halves"] == msgspec.to_builtins(now.split_backward)
    save_profile(loaded, tmp_path / "profile.json")
    saved = json.loads((tmp_path / "profile.json").read_text())
    assert (saved["version"], saved["variants"]) == (4, [])
    assert all("halves" not in la and "split_backward" in la for la in saved["graph"]["layers"])
    assert load_profile(tmp_path / "profile.json") == loaded
    assert profile_hash(loaded) == HASHES_OF_VERSION_1.get(path.stem, profile_hash(loaded))


@pytest.mark.parametrize("graph", ["null", "3", "{}", '{"layers": 4}', '{"layers": [1]}'])
def test_a_profile_of_version_1_without_layers_is_refused_with_its_place(
    tmp_path: Path, graph: str
):
    path = tmp_path / "profile.json"
    tree = json.loads(encode(profile(ROW))) | {"version": 1, "graph": json.loads(graph)}
    path.write_text(json.dumps(tree))
    with pytest.raises(FileError, match=r"\$\.graph"):
        load_profile(path)


def test_a_profile_made_in_python_with_whole_seconds_keeps_its_hash_in_a_file(tmp_path: Path):
    made = profile(LayerGraph(layers=(layer("a", forward_time=2, update_time=0),), values=()))
    save_profile(made, tmp_path / "profile.json")
    assert profile_hash(load_profile(tmp_path / "profile.json")) == profile_hash(made)


def test_a_profile_written_by_hand_keeps_its_hash_through_save_and_load(tmp_path: Path):
    made = profile(
        LayerGraph(layers=(layer("a", forward_time=2.0, weight_grad_time=0.125),), values=())
    )
    tree = json.loads(encode(made))
    # Other spellings, the keys backwards, and no optional key.
    kept = ("name", "kind", "forward_time", "input_grad_time", "weight_grad_time")
    tree["graph"]["layers"] = [
        {key: la[key] for key in kept[::-1]} for la in tree["graph"]["layers"]
    ]
    tree["graph"] = {key: tree["graph"][key] for key in ("values", "layers")}
    text = json.dumps(
        {key: tree[key] for key in reversed(tree) if tree[key] not in ((), [], None, 0, "")}
    )
    by_hand = text.replace(": 2.0", ": 2").replace("0.125", "12.50e-2").replace(": 1.0", ": 0.1e1")
    assert by_hand.count("12.50e-2") == by_hand.count("0.1e1") == by_hand.count('_time": 2,') == 1
    (tmp_path / "by_hand.json").write_text(by_hand)
    loaded = load_profile(tmp_path / "by_hand.json")
    save_profile(loaded, tmp_path / "saved.json")
    assert profile_hash(loaded) == profile_hash(load_profile(tmp_path / "saved.json"))
    assert profile_hash(loaded) == profile_hash(made)
