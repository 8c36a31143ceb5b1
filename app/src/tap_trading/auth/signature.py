"""Signatures of sign-in texts, by scheme: what an address is, and whether its owner signed.

`Ed25519` is what Solana wallets speak. Another scheme (EIP-4361, say) joins by being a
`Scheme` of its own.
"""

import re
from collections.abc import Iterator
from typing import Protocol

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from tap_trading.auth import base58

_KEY_BYTES = 32
_SIGNATURE_BYTES = 64

# Solana's off-chain message header. It begins with a byte that begins no transaction, so
# that nothing signed behind it can ever be one.
_SIGNING_DOMAIN = b"\xffsolana offchain"
_APPLICATION_DOMAIN_BYTES = 32
#: Printable ASCII and the line feed, which the header's second revision added.
_RESTRICTED_ASCII = re.compile(rb"[\x20-\x7e\n]+")
_ASCII, _UTF8, _LONG_UTF8 = 0, 1, 2
#: Longest header and text together in the formats for hardware wallets, in bytes.
_SHORT = 1232
#: What the length field can say, in bytes.
_LONGEST = 0xFFFF


class Scheme(Protocol):
    """A kind of wallet."""

    def is_address(self, text: str) -> bool:
        """Whether `text` is an address, spelled the one right way."""
        ...

    def signed(self, address: str, text: str, signature: str) -> bool:
        """Whether `signature` is the owner of `address` signing `text`."""
        ...


class Ed25519:
    """Solana wallets: base58 keys, over the text itself or behind the off-chain header."""

    def __init__(self, domain: str) -> None:
        """`domain` is the site's, which some wallets put into the header as application."""
        application = domain.encode()[:_APPLICATION_DOMAIN_BYTES]
        self._applications = (
            bytes(_APPLICATION_DOMAIN_BYTES),  # "none given", what most wallets write
            application.ljust(_APPLICATION_DOMAIN_BYTES, b"\0"),
        )

    def is_address(self, text: str) -> bool:
        """Whether `text` is canonical base58 of 32 bytes.

        Not every such number is a point that somebody can have the key of. Whoever asks
        for such an address cannot sign for it either.
        """
        return base58.decode(text, _KEY_BYTES) is not None

    def signed(self, address: str, text: str, signature: str) -> bool:
        """Whether `signature`, 64 bytes in canonical base58, was made with the address' key.

        The library refuses what strict verifiers do: a scalar that is not reduced
        (a second signature derived from a first), keys and points of small order.
        """
        key = base58.decode(address, _KEY_BYTES)
        raw = base58.decode(signature, _SIGNATURE_BYTES)
        if key is None or raw is None:
            return False
        verifier = VerifyKey(key)
        return any(
            _verifies(verifier, signed, raw)
            for signed in signed_forms(key, text.encode(), self._applications)
        )


def signed_forms(key: bytes, text: bytes, applications: tuple[bytes, ...]) -> Iterator[bytes]:
    """The sequences of bytes a wallet may have signed for `text`, the likeliest first.

    A client sends a signature only, so each form is made here and tried. Each says the
    whole text, and nothing in a form comes from the client.
    """
    yield text
    if not 0 < len(text) <= _LONGEST:
        return
    length = len(text).to_bytes(2, "little")
    one_signer = b"\x01" + key
    # Header version 1: signers and text; early firmware still wrote the length.
    yield _SIGNING_DOMAIN + b"\x01" + one_signer + text
    yield _SIGNING_DOMAIN + b"\x01" + one_signer + length + text
    # Header version 0: with application and signers as published, or as short as the first
    # draft, the command-line wallet and older firmware have it.
    for file_format in (_ASCII, _UTF8, _LONG_UTF8):
        middle = bytes((file_format,))
        headers = [application + middle + one_signer for application in applications]
        for header in (*headers, middle):
            signed = _SIGNING_DOMAIN + b"\x00" + header + length + text
            if _conforms(file_format, text, len(signed)):
                yield signed


def _conforms(file_format: int, text: bytes, signed_bytes: int) -> bool:
    """Whether a version 0 header may announce `text` in this format; verifiers must check."""
    if file_format == _LONG_UTF8:
        return signed_bytes <= _LONGEST
    if signed_bytes > _SHORT:
        return False
    return file_format == _UTF8 or _RESTRICTED_ASCII.fullmatch(text) is not None


def _verifies(verifier: VerifyKey, signed: bytes, signature: bytes) -> bool:
    try:
        verifier.verify(signed, signature)
    except BadSignatureError:
        return False
    return True
