"""The sign-in text: written as the standard's grammar has it, and read no other way."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_trading.auth import base58
from tap_trading.auth.message import Message, build, parse

ASKED = Message(
    domain="tap.example:8443",
    address="FVen3X669xLzsi6N2V91DoiyzHzg1uAgqiT8jZ9nS96Z",
    statement="Sign in to BTC tap trading. This moves no funds and costs nothing.",
    uri="https://tap.example:8443/play?x=%20#top",
    chain_id="mainnet",
    nonce="oBbLoEldZs8aBcDeFgHiJk",
    issued_at_ms=1_764_000_000_123,
    expires_at_ms=1_764_000_090_123,
)
TEXT = """\
tap.example:8443 wants you to sign in with your Solana account:
FVen3X669xLzsi6N2V91DoiyzHzg1uAgqiT8jZ9nS96Z

Sign in to BTC tap trading. This moves no funds and costs nothing.

URI: https://tap.example:8443/play?x=%20#top
Version: 1
Chain ID: mainnet
Nonce: oBbLoEldZs8aBcDeFgHiJk
Issued At: 2025-11-24T16:00:00.123Z
Expiration Time: 2025-11-24T16:01:30.123Z"""

letters = "abcdefghijklmnopqrstuvwxyz0123456789"
times = st.integers(0, 4_102_444_799_999)
messages = st.builds(
    Message,
    domain=st.one_of(
        st.text(letters + ".-", min_size=1, max_size=40),
        st.sampled_from(["localhost", "localhost:8088", "127.0.0.1:8443", "[::1]:80"]),
    ),
    address=st.binary(min_size=32, max_size=32).map(base58.encode),
    statement=st.text(letters + "ABC :/?#[]@!$&'()*+,;=-._~", min_size=1, max_size=80),
    uri=st.builds(
        "{}://{}{}{}".format,
        st.sampled_from(["http", "https"]),
        st.text(letters, min_size=1, max_size=20),
        st.text(letters + "/:@&=", max_size=20).map(lambda path: f"/{path}"),
        st.sampled_from(["", "?a=1&b=/?", "#part", "?x#y", "?", "#", "?q=%c3%A9"]),
    ),
    chain_id=st.sampled_from(["mainnet", "testnet", "devnet", "localnet", "solana:devnet"]),
    nonce=st.text("ABCdef123", min_size=8, max_size=32),
    issued_at_ms=times,
    expires_at_ms=times,
)


def test_the_text_in_full() -> None:
    assert build(ASKED) == TEXT
    assert parse(TEXT) == ASKED


@given(messages)
def test_there_and_back(message: Message) -> None:
    assert parse(build(message)) == message


def reads_as_itself(text: str) -> bool:
    """Whether a text is refused, or taken for exactly what it says."""
    said = parse(text)
    return said is None or (build(said) == text and (text == TEXT or said != ASKED))


@given(st.data(), st.characters(codec="utf-8"))
def test_a_changed_character_is_refused_or_says_something_else(
    draw: st.DataObject, character: str
) -> None:
    at = draw.draw(st.integers(0, len(TEXT)))
    kept_from = draw.draw(st.integers(at, min(at + 2, len(TEXT))))
    assert reads_as_itself(TEXT[:at] + character + TEXT[kept_from:])


@given(st.data())
def test_so_is_a_part_that_is_missing_or_twice(draw: st.DataObject) -> None:
    at, end = sorted((draw.draw(st.integers(0, len(TEXT))), draw.draw(st.integers(0, len(TEXT)))))
    assert reads_as_itself(TEXT[:at] + TEXT[end:])
    assert reads_as_itself(TEXT[:end] + TEXT[at:])


@given(st.permutations(TEXT.split("\n")))
def test_lines_have_one_order(lines: list[str]) -> None:
    assert reads_as_itself("\n".join(lines))
    said = parse("\n".join(lines))
    assert said is None or "\n".join(lines) == TEXT


def test_lines_with_the_same_grammar_cannot_be_swapped_unnoticed() -> None:
    lines = TEXT.split("\n")
    lines[-1] = lines[-1].replace("Expiration Time", "Issued At")
    lines[-2] = lines[-2].replace("Issued At", "Expiration Time")
    assert parse("\n".join([*lines[:-2], lines[-1], lines[-2]])) == replace(
        ASKED, issued_at_ms=ASKED.expires_at_ms, expires_at_ms=ASKED.issued_at_ms
    )


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("tap.example:8443 wants", "google.com@tap.example:8443 wants"),
        ("tap.example:8443 wants", " wants"),
        ("tap.example:8443 wants", "tap.example:8443  wants"),
        ("tap.example:8443 wants", "https://tap.example wants"),
        ("tap.example:8443 wants", "täp.example wants"),
        ("tap.example:8443 wants", "tap.example:port wants"),
        ("tap.example:8443 wants", "tap.example:844333 wants"),
        ("tap.example:8443 wants", "tap%2.example wants"),
        ("Solana", "Ethereum"),
        ("Solana", "solana"),
        ("FVen3X669", "0Ven3X669"),
        ("FVen3X669xLzsi6N", ""),
        ("FVen3X669", "FVen3X669FVen3X669"),
        ("no funds", 'no "funds"'),
        ("no funds", "no\nfunds"),
        ("no funds", "no\tfunds"),
        ("no funds", "no funds ½"),
        ("nothing.\n\nURI", "nothing.\nURI"),
        ("account:\nFVen", "account:\n\nFVen"),
        ("https://tap", "//tap"),
        ("https://tap", "javascript:tap"),
        ("https://tap", "https://user@tap"),
        ("?x=%20", "?x=%2"),
        ("?x=%20", "?x=%20 "),
        ("#top", "#top#top"),
        ("Version: 1", "Version: 2"),
        ("Version: 1", "Version: 1.0"),
        ("Version: 1", "version: 1"),
        ("Version: 1\n", ""),
        ("Chain ID: mainnet", "Chain ID: 1"),
        ("Chain ID: mainnet", "Chain ID: solana:localnet"),
        ("Nonce: oBbLoEldZs8aBcDeFgHiJk", "Nonce: oBbLoEl"),
        ("Nonce: oBbLoEld", "Nonce: oBb-LoEld"),
        ("Nonce: oBbLoEld", "Nonce: oBb٣LoEld"),
        ("Issued At: 2025-11-24T16:00:00.123Z\n", ""),
        ("00.123Z", "00Z"),
        ("00.123Z", "00.123456Z"),
        ("00.123Z", "00.123+00:00"),
        ("00.123Z", "00.123z"),
        ("00.123Z", "60.123Z"),
        ("2025-11-24T16:00", "2025-11-24 16:00"),
        ("2025-11-24T16:00", "2025-02-30T16:00"),
        ("2025-11-24T16:00", "2025-13-24T16:00"),
        ("2025-11-24T16:00", "2025-11-24T24:00"),
        ("2025-11-24T16:00", "0000-11-24T16:00"),
        ("2025-11-24T16:00", "٢٠٢٥-11-24T16:00"),
        ("30.123Z", "30.123Z\n"),
        ("30.123Z", "30.123Z\nNot Before: 2025-11-24T16:00:00.123Z"),
        ("30.123Z", "30.123Z\nRequest ID: 1"),
        ("30.123Z", "30.123Z\nResources:\n- https://evil.example"),
        ("\n", "\r\n"),
        ("tap.example:8443 wants", "\ufefftap.example:8443 wants"),
    ],
)
def test_what_the_grammar_does_not_have(part: str, other: str) -> None:
    assert part in TEXT
    assert parse(TEXT.replace(part, other)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"domain": "user@tap.example"},
        {"domain": ""},
        {"address": "0x71C7656EC7ab88b098defB751B7401B5f6d8976F"},
        {"statement": "two\nlines"},
        {"statement": ""},
        {"uri": "tap.example"},
        {"chain_id": "1"},
        {"nonce": "short"},
        {"issued_at_ms": -1},
        {"expires_at_ms": 4_102_444_800_000},
    ],
)
def test_what_does_not_fit_is_not_written(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="grammar"):
        build(replace(ASKED, **change))
