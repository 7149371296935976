"""Calibration files, and those that are refused."""

from pathlib import Path

import msgspec
import pytest

from autopart.errors import ClusterError, FileError
from autopart.records.calibration import (
    MeasuredKernel,
    check_calibration,
    check_dtype,
    described,
    load_calibration,
    notes_on_range,
    save_calibration,
)
from autopart.records.known_gpus import find_gpu
from tests.support.fuzz.seed_files import calibrations

A100 = find_gpu("a100-sxm-80gb")
OWN = calibrations()[0]


def test_a_calibration_survives_its_file(tmp_path: Path) -> None:
    save_calibration(OWN, tmp_path / "own.json")
    assert load_calibration(tmp_path / "own.json") == OWN


def test_its_words_have_rows_and_the_error_on_held_out_ones() -> None:
    assert described(OWN) == "runs.csv (24 steps, 3.1 % off on held-out rows)"


def test_another_gpu_and_another_dtype_are_refused_by_name() -> None:
    with pytest.raises(ClusterError, match="for a100-sxm-80gb, not for h100-sxm"):
        check_calibration(OWN, find_gpu("h100-sxm"))
    with pytest.raises(ClusterError, match="for bfloat16, and the model has float16"):
        check_dtype(OWN, "float16")


@pytest.mark.parametrize("share", ["0.0", "1.5", "-0.1", "null"])
def test_a_file_with_no_rate_or_one_beyond_the_peak_is_refused(tmp_path: Path, share: str) -> None:
    path = tmp_path / "own.json"
    save_calibration(OWN, path)
    content = path.read_text()
    assert '"products": 0.869' in content
    path.write_text(content.replace('"products": 0.869', f'"products": {share}'))
    with pytest.raises(FileError, match="products"):
        load_calibration(path)


@pytest.mark.parametrize(
    ("seconds", "message"),
    [(0.0, "no rate for products 4096 x 4096 x 4096"), (1e-4, "440.5 % of the peak rate")],
)
def test_a_measured_kernel_without_a_rate_or_beyond_the_peak_is_refused(
    seconds: float, message: str
) -> None:
    kernel = MeasuredKernel(
        kind="products", shape=(4096, 4096, 4096), amount=2.0 * 4096**3, seconds=seconds
    )
    with pytest.raises(ClusterError, match=message):
        check_calibration(msgspec.structs.replace(OWN, measured=(kernel,)), A100)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("microbatch_sizes", [], "at least one size"),
        ("microbatch_sizes", [2, 1], "the smallest stands first"),
        ("least_params", 10**11, "least_params is above most_params"),
    ],
)
def test_an_impossible_range_is_refused(tmp_path: Path, key: str, value: object, said: str) -> None:
    made = msgspec.to_builtins(OWN)
    made["validity"][key] = value
    (tmp_path / "c.json").write_bytes(msgspec.json.encode(made))
    with pytest.raises(FileError, match=rf"{said}.*\$\.validity"):
        load_calibration(tmp_path / "c.json")


def test_a_model_outside_of_the_range_is_named() -> None:
    assert notes_on_range(OWN, 5 * 10**9, 1) == ()
    larger, microbatch = notes_on_range(OWN, 2 * 10**10, 4)
    assert "1,000,000,000 to 10,000,000,000 parameters, and this one has 20,000,000,000" in larger
    assert "microbatches of 1 to 2, and this profile has 4" in microbatch
