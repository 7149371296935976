"""Files of sizings, and those that are refused."""

from pathlib import Path

import msgspec
import pytest

from autopart.errors import FileError
from autopart.records.size import Sizing, load_sizing, save_sizing
from tests.support.fuzz.seed_files import sizings


def test_a_sizing_survives_its_file(tmp_path: Path) -> None:
    (sizing,) = sizings()
    save_sizing(sizing, tmp_path / "size.json")
    assert load_sizing(tmp_path / "size.json") == sizing


@pytest.mark.parametrize("place", ["front", "counts"])
def test_a_gpu_kind_that_the_file_does_not_list_is_refused(tmp_path: Path, place: str) -> None:
    (sizing,) = sizings()
    first, *others = getattr(sizing, place)
    wrong: Sizing = msgspec.structs.replace(
        sizing, **{place: (msgspec.structs.replace(first, gpu="other"), *others)}
    )
    save_sizing(wrong, tmp_path / "size.json")
    with pytest.raises(FileError, match=rf"\$\.{place}\[0\]\.gpu: 'other' is none of"):
        load_sizing(tmp_path / "size.json")
