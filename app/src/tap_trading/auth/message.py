"""The text a wallet signs: Sign-In-With-Solana, an open standard modelled on EIP-4361.

We build it, the wallet shows and signs it, and we parse it again before anyone is let in.
Of the standard's optional fields ours always has the same ones, and times have one spelling
(UTC, milliseconds, `Z`) in the years from 1970 to 2099; so what `parse` accepts is exactly
what `build` writes.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tap_trading.base.logger import rfc3339_ms

# The standard takes these from RFC 3986. A user part ("google.com@evil.example") is left out
# of the authority on purpose: it serves nobody but those who want to be taken for another.
_ESCAPE = "%[0-9A-Fa-f]{2}"
_UNRESERVED = r"A-Za-z0-9\-._~"
_SUB_DELIMS = "!$&'()*+,;="
_PCHAR = f"(?:[{_UNRESERVED}{_SUB_DELIMS}:@]|{_ESCAPE})"
_HOST = rf"(?:\[[0-9A-Fa-f:.]+\]|(?:[{_UNRESERVED}{_SUB_DELIMS}]|{_ESCAPE})+)"
_AUTHORITY = rf"{_HOST}(?::[0-9]{{1,5}})?"
_URI = (
    rf"[A-Za-z][A-Za-z0-9+.\-]*://{_AUTHORITY}(?:/{_PCHAR}*)*"
    rf"(?:\?(?:{_PCHAR}|[/?])*)?(?:\#(?:{_PCHAR}|[/?])*)?"
)
_TIME = (
    r"(?:19[7-9]|20[0-9])[0-9]-[01][0-9]-[0-3][0-9]"
    r"T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{3}Z"
)

_MESSAGE = re.compile(
    rf"(?P<domain>{_AUTHORITY}) wants you to sign in with your Solana account:\n"
    r"(?P<address>[1-9A-HJ-NP-Za-km-z]{32,44})\n"
    r"\n"
    rf"(?P<statement>[{_UNRESERVED}:/?#\[\]@{_SUB_DELIMS} ]+)\n"
    r"\n"
    rf"URI: (?P<uri>{_URI})\n"
    r"Version: 1\n"
    r"Chain ID: (?P<chain_id>(?:solana:)?(?:mainnet|testnet|devnet)|localnet)\n"
    r"Nonce: (?P<nonce>[A-Za-z0-9]{8,})\n"
    rf"Issued At: (?P<issued_at>{_TIME})\n"
    rf"Expiration Time: (?P<expires_at>{_TIME})"
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Message:
    """What the text says."""

    domain: str  # host, or host:port
    address: str  # base58
    statement: str
    uri: str
    chain_id: str
    nonce: str
    issued_at_ms: int  # Unix ms
    expires_at_ms: int  # Unix ms


def build(message: Message) -> str:
    """The text to sign. Raises ValueError when a field does not fit the standard's grammar."""
    text = (
        f"{message.domain} wants you to sign in with your Solana account:\n"
        f"{message.address}\n"
        "\n"
        f"{message.statement}\n"
        "\n"
        f"URI: {message.uri}\n"
        "Version: 1\n"
        f"Chain ID: {message.chain_id}\n"
        f"Nonce: {message.nonce}\n"
        f"Issued At: {rfc3339_ms(message.issued_at_ms)}\n"
        f"Expiration Time: {rfc3339_ms(message.expires_at_ms)}"
    )
    if parse(text) != message:
        raise ValueError("a field does not fit the grammar of Sign-In-With-Solana")
    return text


def parse(text: str) -> Message | None:
    """What `text` says, or None when `build` would not have written it."""
    match = _MESSAGE.fullmatch(text)
    if match is None:
        return None
    fields = match.groupdict()
    try:
        issued_at_ms = _unix_ms(fields.pop("issued_at"))
        expires_at_ms = _unix_ms(fields.pop("expires_at"))
    except ValueError:  # the 30th of February
        return None
    return Message(**fields, issued_at_ms=issued_at_ms, expires_at_ms=expires_at_ms)


def _unix_ms(text: str) -> int:
    return (datetime.fromisoformat(text) - _EPOCH) // _MS
