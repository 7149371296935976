import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.errors import AutopartError
from autopart.units import (
    format_bytes,
    format_change,
    format_share,
    format_time,
    parse_bandwidth,
    parse_bytes,
    parse_time,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GiB", 80 << 30), ("80 GB", 80 * 10**9), ("1.5KiB", 1536), ("1024", 1024), ("2k", 2000)],
)
def test_a_size_is_binary_or_decimal_by_its_unit(text: str, size: int):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "80 XB", "-1GiB", "80GiBs", "1e", "nan"])
def test_an_invalid_size_is_refused_with_an_example(text: str):
    with pytest.raises(AutopartError, match="is not a size; write for example 80GiB"):
        parse_bytes(text)


def test_a_bandwidth_may_be_in_bits_or_bytes():
    assert parse_bandwidth("25GB/s") == 25e9
    assert parse_bandwidth("200Gbit/s") == 25e9
    assert parse_bandwidth("200Gbps") == 25e9
    assert parse_bandwidth("1e9") == 1e9


@pytest.mark.parametrize("text", ["0", "0GB/s", "fast", "-3GB/s"])
def test_an_invalid_bandwidth_is_refused(text: str):
    with pytest.raises(AutopartError, match="is not a bandwidth"):
        parse_bandwidth(text)


def test_times_are_read_in_their_units():
    assert parse_time("5us") == pytest.approx(5e-6, rel=1e-15)
    assert parse_time("0.2ms") == pytest.approx(2e-4, rel=1e-15)
    assert parse_time("1.5") == 1.5
    with pytest.raises(AutopartError, match="is not a time"):
        parse_time("soon")


@given(st.integers(min_value=0, max_value=1 << 50))
def test_a_number_without_a_unit_is_read_as_bytes(size: int):
    assert parse_bytes(str(size)) == pytest.approx(size, rel=1e-12)


def test_numbers_are_printed_with_a_suitable_unit():
    assert format_bytes(80 << 30) == "80.0 GiB"
    assert format_bytes(12) == "12 B"
    assert format_bytes(5000 << 30) == "5000.0 GiB"
    assert format_time(1.0234) == "1.02 s"
    assert format_time(0.8124) == "812 ms"
    assert format_time(35.14e-6) == "35.1 µs"
    assert format_time(0.0) == "0.00 µs"
    assert format_share(0.125) == "12.5 %"


def test_changes_have_their_sign_and_none_is_a_negative_zero():
    assert [format_change(x) for x in (0.0352, -0.0856, 0.0, -0.0001)] == [
        "+3.5 %", "-8.6 %", "0.0 %", "0.0 %",
    ]  # fmt: skip
