"""Cursors: one spelling for each place, and nothing else is one."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_trading.ledger.ids import new_id
from tap_trading.ledger.queries import (
    BET_CURSORS,
    ENTRY_CURSORS,
    BadCursorError,
    Cursor,
    CursorForm,
)

NOW = 1_764_000_002_000
BET = Cursor(NOW, new_id("bet", NOW))
TEXT = BET_CURSORS.write(BET)

forms = st.sampled_from([BET_CURSORS, ENTRY_CURSORS])
visible = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=64)
cursors = st.builds(Cursor, st.integers(0, 2**48 - 1), visible)


@given(forms, cursors)
def test_a_cursor_is_read_as_it_was_written(form: CursorForm, cursor: Cursor) -> None:
    text = form.write(cursor)
    assert form.read(text) == cursor
    assert re.fullmatch(form.pattern, text)
    assert re.fullmatch(r"[A-Za-z0-9_\-]+", text), "it has to fit into a URL as it is"


@given(forms, st.one_of(st.text(), st.text("0123456789abcdef").map("b1".__add__)))
def test_what_is_read_has_no_other_spelling(form: CursorForm, text: str) -> None:
    try:
        cursor = form.read(text)
    except BadCursorError:
        return
    assert form.write(cursor) == text


@given(forms, st.data())
def test_whatever_the_published_pattern_fits_is_read(form: CursorForm, data: st.DataObject) -> None:
    text = data.draw(st.from_regex(form.pattern, fullmatch=True))
    assert form.write(form.read(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b1",
        TEXT[:-1],
        TEXT[:14],  # a time and no id
        f" {TEXT}",
        f"{TEXT}\n",
        f"{TEXT}{TEXT}",
        TEXT.upper(),
        TEXT.replace("b1", "b2", 1),  # of another version
        TEXT.replace("b1", "e1", 1),  # of the other list
        TEXT.replace("b1", "b\u0661", 1),
        f"{TEXT}00",
        f"{TEXT}20",
        f"{TEXT}7f",
        f"{TEXT}e9",
        f"{TEXT}+7",
        TEXT + "61" * 64,
        BET.item_id,
        str(NOW),
        "eyJ0aW1lIjoxfQ==",
    ],
)
def test_anything_else_is_no_cursor(text: str) -> None:
    with pytest.raises(BadCursorError):
        BET_CURSORS.read(text)
