"""Files that are no JSON, too deep, too large or in no known text are refused with their place."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from autopart.errors import AutopartError, FileError
from autopart.peers.formats import import_profile
from autopart.records import files
from autopart.records.cluster import cluster_of, load_cluster, save_cluster
from autopart.records.files import content_hash, encode
from autopart.records.plan import load_plan
from autopart.records.profile import load_profile

HEAD = b'{"format": "autopart-%s", "version": %d, "source": '

LOADERS: list[tuple[str, int, Callable[[Path], object]]] = [
    ("profile", 2, load_profile),
    ("profile", 1, load_profile),
    ("cluster", 1, load_cluster),
    ("plan", 3, load_plan),
    ("plan", 2, load_plan),
    ("piper", 1, lambda path: import_profile("piper", path)),
    ("dnn", 1, lambda path: import_profile("dnn-partitioning", path)),
]
"""For each format and version the function that reads its file."""

HOSTILE = [
    (b'"' + b"[" * 100_000, "nested|malformed|truncated|not a whole"),
    (b"[" * 100_000 + b"]" * 100_000 + b"}", "nested more than 32 deep at byte"),
    (b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "nested more than 32 deep at byte"),
    (b'"\xff\xfe"}', "is not UTF-8"),
    (b'[{"\xff": 1}]}', "is not UTF-8"),
    (b'"\\ud800"}', "truncated|surrogate"),
    (b'"\\udc00 "}', "surrogate"),
    (b"1" * 5000 + b"}", "out of range|Expected|missing|Number|unknown field"),
    (b"", "truncated"),
]


@pytest.mark.parametrize(("body", "message"), HOSTILE, ids=[str(i) for i in range(len(HOSTILE))])
@pytest.mark.parametrize(("kind", "version", "load"), LOADERS)
def test_hostile_text_is_refused_on_one_line(
    tmp_path: Path,
    kind: str,
    version: int,
    load: Callable[[Path], object],
    body: bytes,
    message: str,
):
    path = tmp_path / "hostile.json"
    path.write_bytes(HEAD % (kind.encode(), version) + body)
    with pytest.raises(FileError, match=message) as refused:
        load(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_text_that_is_no_utf_8_is_named_by_its_line(tmp_path: Path):
    path = tmp_path / "c.json"
    save_cluster(cluster_of("cpu", 2), path)
    path.write_bytes(path.read_bytes().replace(b'"cpu"', b'"\xff"'))
    with pytest.raises(FileError, match=r"byte 5\d \(line 4\) is not UTF-8"):
        load_cluster(path)


def test_marks_within_texts_do_not_count_as_levels(tmp_path: Path):
    path = tmp_path / "c.json"
    path.write_bytes(b'{"x": "\\"' + b"[" * 99 + b'", "y": ' + b"[" * 9999)
    with pytest.raises(FileError, match=rf"at byte {len(path.read_bytes()) - 9999 + 31}$"):
        load_cluster(path)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "MOST_FILE_BYTES", 2**20)
    path = tmp_path / "c.json"
    path.write_bytes(b" " * (2**20 + 1))
    for read in (load_cluster, lambda p: import_profile("pipedream", p)):
        with pytest.raises(FileError, match="too large; at most 1 MiB are read"):
            read(path)
    with pytest.raises(FileError, match="too large"):
        load_cluster(Path("/dev/zero"))


def test_a_small_file_takes_no_memory_for_a_large_one(tmp_path: Path):
    path = tmp_path / "c.json"
    save_cluster(cluster_of("cpu", 2), path)
    tracemalloc.start()
    load_cluster(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**23


def test_a_folder_and_a_name_that_no_file_can_have_are_refused(tmp_path: Path):
    with pytest.raises(FileError, match="cannot be read: Is a directory"):
        load_cluster(tmp_path)
    with pytest.raises(FileError, match="cannot be read: embedded null byte"):
        load_cluster(tmp_path / "a\0b")


def test_a_figure_that_no_file_may_have_is_never_written(tmp_path: Path):
    cluster = msgspec.structs.replace(cluster_of("cpu", 2), action_overhead=float("inf"))
    with pytest.raises(AutopartError, match="cannot be written: Expected `float`, got `null`"):
        save_cluster(cluster, tmp_path / "c.json")
    assert not (tmp_path / "c.json").exists()


def test_a_file_that_cannot_be_written_leaves_nothing_beside_it(tmp_path: Path):
    (tmp_path / "c.json" / "inside").mkdir(parents=True)
    with pytest.raises(FileError, match="cannot be written: Is a directory"):
        save_cluster(cluster_of("cpu", 2), tmp_path / "c.json")
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


def test_bytes_of_a_file_name_that_are_no_utf_8_are_written_as_text():
    named = msgspec.structs.replace(cluster_of("cpu", 2), source="a\udcff.txt")
    assert b"a\\\\udcff.txt" in encode(named)
    assert content_hash(named) == content_hash(
        msgspec.structs.replace(named, source="a\\udcff.txt")
    )
