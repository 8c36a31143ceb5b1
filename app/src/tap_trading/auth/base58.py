"""Base58 as wallets write keys and signatures: one spelling for each sequence of bytes."""

import base58

#: More characters than any byte needs: 58 letters carry 5.85 bits each.
_CHARACTERS_PER_BYTE = 1.37


def decode(text: str, size: int) -> bytes | None:
    """The `size` bytes that `text` spells, or None when it is anything but their spelling."""
    # Decoding takes time with the square of the length, so the length comes first.
    if not size <= len(text) <= size * _CHARACTERS_PER_BYTE + 1:
        return None
    try:
        found = base58.b58decode(text)
    except ValueError:  # a character that is none of the 58, or not even ASCII
        return None
    # The library forgives blanks at the end; writing it anew shows whether anything was.
    return found if len(found) == size and encode(found) == text else None


def encode(data: bytes) -> str:
    """The spelling of `data`."""
    return base58.b58encode(data).decode("ascii")
