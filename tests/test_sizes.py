"""Sizes as people write them, and the messages for what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.errors import BadInput
from longspan.sizes import format_bytes, parse_bytes, parse_tokens


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("512MiB", 512 * 2**20),
        ("2GB", 2 * 10**9),
        ("1.5GiB", 3 * 2**29),
        (" 1.5 gib ", 3 * 2**29),
        ("1048576", 2**20),
        (4096, 4096),
        ("10kb", 10_000),
    ],
)
def test_bytes(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    ("text", "count"), [("8K", 8192), ("256k", 2**18), ("1M", 2**20), ("50000", 50_000), (7, 7)]
)
def test_tokens(text: str | int, count: int) -> None:
    assert parse_tokens(text) == count


@pytest.mark.parametrize("text", ["", "MiB", "2XB", "-1GB", "1e9", "two"])
def test_no_size(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_bytes(text)
    assert str(caught.value) == (
        f"{text!r} is not a size. Write it like 512MiB, 2GB, 1.5GiB or 1048576."
    )


def test_zero_is_no_token_count() -> None:
    with pytest.raises(BadInput) as caught:
        parse_tokens("0K")
    assert str(caught.value) == (
        "The token count '0K' is not positive. Write it like 8K, 256K, 1M or 50000."
    )


@given(st.integers(min_value=1, max_value=2**50))
def test_bytes_round_trip_as_digits(count: int) -> None:
    assert parse_bytes(str(count)) == count


def test_format() -> None:
    assert format_bytes(1023) == "1023 B"
    assert format_bytes(612 * 2**20) == "612.0 MiB"
