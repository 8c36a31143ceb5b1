"""Base58: each sequence of bytes has one spelling, and nothing else is taken for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_trading.auth import base58

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
KEY = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
SPELLED = "FVen3X669xLzsi6N2V91DoiyzHzg1uAgqiT8jZ9nS96Z"


@given(st.binary(min_size=1, max_size=80))
def test_there_and_back(data: bytes) -> None:
    assert base58.decode(base58.encode(data), len(data)) == data


@given(st.binary(min_size=32, max_size=32), st.sampled_from([31, 33, 64, 16]))
def test_only_of_the_right_length(data: bytes, size: int) -> None:
    assert base58.decode(base58.encode(data), size) is None


@given(st.text(ALPHABET, min_size=30, max_size=46))
def test_whatever_decodes_is_spelled_that_way(text: str) -> None:
    found = base58.decode(text, 32)
    assert found is None or (len(found) == 32 and base58.encode(found) == text)


@given(st.text())
def test_other_texts_do_no_harm(text: str) -> None:
    found = base58.decode(text, 4)
    assert found is None or base58.encode(found) == text


@given(
    st.binary(min_size=32, max_size=32),
    st.data(),
    st.sampled_from([" ", "\n", "\t", "0", "O", "I", "l", "1", "٣", "²", "é", "\ud800", "\0"]),
)
def test_one_character_more_is_another_text(data: bytes, draw: st.DataObject, extra: str) -> None:
    text = base58.encode(data)
    at = draw.draw(st.integers(0, len(text)))
    assert base58.decode(text[:at] + extra + text[at:], 32) != data


def test_known_spellings() -> None:
    assert base58.encode(KEY) == SPELLED
    assert base58.decode(SPELLED, 32) == KEY
    assert base58.decode("1" * 32, 32) == bytes(32)
    assert base58.encode(bytes(32)) == "1" * 32


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "1" * 31,
        "1" * 33,
        "1" + SPELLED,
        SPELLED + " ",
        SPELLED + "\n",
        " " + SPELLED,
        SPELLED[:-2],
        SPELLED[:-1] + "0",
        "z" * 44,
        "z" * 1_000_000,
    ],
)
def test_what_is_no_key(text: str) -> None:
    assert base58.decode(text, 32) is None
