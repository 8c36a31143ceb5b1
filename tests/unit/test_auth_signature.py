"""Signatures: of the text, or of the text behind an off-chain header, and of nothing else."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from tap_trading.auth import base58
from tap_trading.auth.signature import Ed25519

#: The order of the group that Ed25519 computes in.
ORDER = 2**252 + 27742317777372353535851937790883648493

DOMAIN = "tap.example"
SCHEME = Ed25519(DOMAIN)
KEY = SigningKey(bytes(range(32)))
PUBLIC = bytes(KEY.verify_key)
ADDRESS = base58.encode(PUBLIC)
TEXT = "tap.example wants you to sign in with your Solana account:\nNonce: 12345678"

MAGIC = b"\xffsolana offchain"
NO_APPLICATION = bytes(32)
OURS = DOMAIN.encode().ljust(32, b"\0")


def minimal(text: bytes, form: int = 0) -> bytes:
    """Version 0 as the first draft had it."""
    return MAGIC + struct.pack("<BBH", 0, form, len(text)) + text


def full(
    text: bytes, form: int = 0, application: bytes = NO_APPLICATION, signers: bytes = PUBLIC
) -> bytes:
    """Version 0 as it was published."""
    count = len(signers) // 32
    header = struct.pack("<B32sBB", 0, application, form, count) + signers
    return MAGIC + header + struct.pack("<H", len(text)) + text


def version_1(text: bytes, signers: bytes = PUBLIC) -> bytes:
    """Version 1."""
    return MAGIC + struct.pack("<BB", 1, len(signers) // 32) + signers + text


def version_1_with_length(text: bytes) -> bytes:
    """Version 1 as early firmware signs it."""
    return MAGIC + b"\x01\x01" + PUBLIC + struct.pack("<H", len(text)) + text


def accepts(signed: bytes, text: str = TEXT, address: str = ADDRESS) -> bool:
    """Whether our key's signature of these bytes counts as one of `text`."""
    return SCHEME.signed(address, text, base58.encode(KEY.sign(signed).signature))


def test_the_text_itself() -> None:
    assert accepts(TEXT.encode())
    assert accepts("höher ↑".encode(), "höher ↑")


def test_a_published_vector() -> None:
    """RFC 8032, section 7.1, test 2: the one whose message (0x72) is text."""
    public = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    signature = bytes.fromhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert SCHEME.signed(base58.encode(public), "r", base58.encode(signature))


@pytest.mark.parametrize(
    "signed",
    [
        minimal(TEXT.encode(), 0),
        minimal(TEXT.encode(), 1),
        minimal(TEXT.encode(), 2),
        full(TEXT.encode(), 0),
        full(TEXT.encode(), 1),
        full(TEXT.encode(), 2),
        full(TEXT.encode(), 0, OURS),
        full(TEXT.encode(), 1, OURS),
        version_1(TEXT.encode()),
        version_1_with_length(TEXT.encode()),
    ],
)
def test_behind_the_header_of_hardware_wallets(signed: bytes) -> None:
    assert accepts(signed)


@pytest.mark.parametrize(
    "signed",
    [
        b"",
        MAGIC,
        MAGIC + TEXT.encode(),
        MAGIC[1:] + minimal(TEXT.encode())[16:],
        minimal(TEXT.encode(), 3),
        minimal(TEXT.encode() + b" "),
        minimal(TEXT.encode())[:-1],
        MAGIC + struct.pack(">BBH", 0, 0, len(TEXT)) + TEXT.encode(),
        MAGIC + struct.pack("<BBH", 0, 0, len(TEXT) + 1) + TEXT.encode(),
        MAGIC + struct.pack("<BBH", 2, 0, len(TEXT)) + TEXT.encode(),
        full(TEXT.encode(), 3),
        full(TEXT.encode(), 0, b"evil.example".ljust(32, b"\0")),
        full(TEXT.encode(), 0, signers=b""),
        full(TEXT.encode(), 0, signers=bytes(32)),
        full(TEXT.encode(), 0, signers=PUBLIC + bytes(32)),
        version_1(TEXT.encode(), b""),
        version_1(TEXT.encode(), bytes(32)),
        version_1(TEXT.encode(), bytes(32) + PUBLIC),
    ],
)
def test_other_headers_are_no_signature_of_the_text(signed: bytes) -> None:
    assert not accepts(signed)


def test_a_header_must_be_true_of_its_text() -> None:
    assert not accepts(minimal("höher".encode(), 0), "höher")
    assert not accepts(full("höher".encode(), 0), "höher")
    assert accepts(minimal("höher".encode(), 1), "höher")
    assert accepts(full("höher".encode(), 1), "höher")
    assert not accepts(full(b"a\tb", 0), "a\tb")
    assert not accepts(minimal(b""), "")
    fits = "x" * (1232 - len(full(b"")))
    for form in (0, 1):
        assert accepts(full(fits.encode(), form), fits)
        assert not accepts(full(fits.encode() + b"x", form), fits + "x")
    assert accepts(full(fits.encode() + b"x", 2), fits + "x")
    longest = "x" * (65535 - len(full(b"")))
    assert accepts(full(longest.encode(), 2), longest)
    assert not accepts(full(longest.encode() + b"x", 2), longest + "x")
    beyond = "x" * 65536
    assert accepts(beyond.encode(), beyond)
    assert not accepts(version_1(beyond.encode()), beyond)


@settings(max_examples=50, deadline=None)
@given(
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=300),
    st.sampled_from([minimal, full, version_1, version_1_with_length]),
    st.data(),
)
def test_any_text_in_any_form_and_no_byte_of_it_different(
    text: str, form: object, draw: st.DataObject
) -> None:
    assert callable(form)
    signed = bytearray(form(text.encode()))
    assert accepts(bytes(signed), text)
    at = draw.draw(st.integers(0, len(signed) - 1))
    signed[at] ^= draw.draw(st.integers(1, 255))
    # The format byte may come out as another one that is true of this text as well.
    others = [form(text.encode(), n) for n in (1, 2)] if form in (minimal, full) else []
    assert accepts(bytes(signed), text) == (bytes(signed) in others)


def test_forgeries() -> None:
    good = KEY.sign(TEXT.encode()).signature
    assert SCHEME.signed(ADDRESS, TEXT, base58.encode(good))
    other = SigningKey(bytes(32))
    others = base58.encode(bytes(other.verify_key))
    assert not SCHEME.signed(others, TEXT, base58.encode(good))
    assert not SCHEME.signed(ADDRESS, TEXT, base58.encode(other.sign(TEXT.encode()).signature))
    assert not SCHEME.signed(ADDRESS, TEXT + " ", base58.encode(good))
    assert not SCHEME.signed(ADDRESS, TEXT, base58.encode(bytes(64)))
    for at in (0, 31, 32, 63):
        forged = bytearray(good)
        forged[at] ^= 1
        assert not SCHEME.signed(ADDRESS, TEXT, base58.encode(bytes(forged)))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[:-1],
        lambda text: text + "1",
        lambda text: "1" + text,
        lambda text: text + "\n",
        lambda text: text * 2,
        lambda text: "0" + text[1:],
        lambda text: "0x" + "ab" * 64,
        lambda text: text + "\ud800",
    ],
)
def test_signatures_have_one_spelling(change: object) -> None:
    good = base58.encode(KEY.sign(TEXT.encode()).signature)
    assert callable(change)
    assert not SCHEME.signed(ADDRESS, TEXT, change(good))


def test_the_second_signature_of_a_signature_is_refused() -> None:
    good = KEY.sign(TEXT.encode()).signature
    scalar = int.from_bytes(good[32:], "little") + ORDER
    assert scalar < 2**256
    high = good[:32] + scalar.to_bytes(32, "little")
    assert not SCHEME.signed(ADDRESS, TEXT, base58.encode(high))


@pytest.mark.parametrize(
    "weak",
    [
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ],
)
def test_keys_that_everybody_can_sign_with_are_refused(weak: str) -> None:
    key = bytes.fromhex(weak)
    for point in (key, bytes.fromhex("01" + "00" * 31)):
        signature = base58.encode(point + bytes(32))
        assert not SCHEME.signed(base58.encode(key), TEXT, signature)


def test_addresses() -> None:
    assert SCHEME.is_address(ADDRESS)
    for wrong in ("", ADDRESS[:-1], ADDRESS + " ", "1" + ADDRESS, "0x" + "ab" * 20):
        assert not SCHEME.is_address(wrong)
        assert not SCHEME.signed(wrong, TEXT, base58.encode(KEY.sign(TEXT.encode()).signature))


def test_a_long_domain_is_cut_to_what_the_header_holds() -> None:
    domain = "a-rather-long-name-for-a-site.tap.example"
    signed = full(TEXT.encode(), 0, domain.encode()[:32])
    signature = base58.encode(KEY.sign(signed).signature)
    assert Ed25519(domain).signed(ADDRESS, TEXT, signature)
    assert not SCHEME.signed(ADDRESS, TEXT, signature)
