"""Files sealed for keeping: compressed, provably whole and, with a key, encrypted.

A sealed file without a key is zstd as any tool reads it: a skippable frame with a label, a frame
with the content, and a skippable frame with the SHA-256 of all bytes before that digest. With a
key these bytes are encrypted and authenticated in chunks by libsodium's secretstream
(XChaCha20-Poly1305), whose last chunk is marked as the last. So an altered byte, a file cut
short and bytes behind its end are noticed in both, and with a key by whom too.

Whatever the size of a file, it takes a few megabytes of memory.
"""

import base64
import binascii
import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import zstandard
from nacl import bindings
from nacl.exceptions import CryptoError

from tap_trading.base.config import Settings

#: How the name of a sealed file ends, without and with a key.
SUFFIX = ".zst"
SUFFIX_ENCRYPTED = ".zst.sealed"

#: The longest label, in bytes.
LONGEST_LABEL = 65536

_KEY_BYTES = bindings.crypto_secretstream_xchacha20poly1305_KEYBYTES
_LEVEL = 3
_CHUNK = 1 << 20

_MAGIC = b"TAPSEAL1"
_HEADER_BYTES = bindings.crypto_secretstream_xchacha20poly1305_HEADERBYTES
_TAG_BYTES = bindings.crypto_secretstream_xchacha20poly1305_ABYTES
_MESSAGE = bindings.crypto_secretstream_xchacha20poly1305_TAG_MESSAGE
_FINAL = bindings.crypto_secretstream_xchacha20poly1305_TAG_FINAL

#: Magic numbers of zstd's skippable frames, of which there are sixteen; after them the length.
_LABEL_FRAME, _DIGEST_FRAME = 0x184D2A5A, 0x184D2A5B
_FRAME = struct.Struct("<II")
_DIGEST_BYTES = 32
_TRAILER_BYTES = _FRAME.size + _DIGEST_BYTES


class SealError(Exception):
    """A file cannot be sealed or opened; the text names it and says why."""


@dataclass(frozen=True, slots=True)
class Key:
    """What encrypts and opens files: 32 secret bytes."""

    secret: bytes = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> "Key":
        """The key in a file, as base64. Raises SealError."""
        try:
            secret = base64.b64decode(path.read_bytes().strip(), validate=True)
        except OSError as error:
            raise SealError(f"the key {path} cannot be read: {error.strerror}") from error
        except binascii.Error as error:
            raise SealError(f"the key {path} is not base64") from error
        if len(secret) != _KEY_BYTES:
            raise SealError(f"the key {path} has {len(secret)} bytes instead of {_KEY_BYTES}")
        return cls(secret)

    @classmethod
    def of(cls, settings: Settings) -> "Key | None":
        """The key of the settings; None when they name none. Raises SealError."""
        path = settings.backup_key_file
        return None if path is None else cls.read(path)

    @staticmethod
    def generate() -> str:
        """The text for the file of a new key: base64, on one line."""
        return base64.b64encode(os.urandom(_KEY_BYTES)).decode()


@dataclass(frozen=True, slots=True)
class Opened:
    """What a sealed file holds."""

    label: bytes
    size: int  # of the content, bytes
    sha256: str  # of the content, hexadecimal


def suffix(key: Key | None) -> str:
    """How the name of a file ends that is sealed with this key, or without one."""
    return SUFFIX if key is None else SUFFIX_ENCRYPTED


def seal(source: Path, target: Path, key: Key | None, label: bytes = b"") -> None:
    """Write `source` sealed to `target`, on disk when it returns; `label` travels with it.

    `target` is overwritten, and is worth nothing if this fails. Raises SealError.
    """
    if len(label) > LONGEST_LABEL:
        raise SealError(f"{target}: a label of {len(label)} bytes is too long")
    try:
        with source.open("rb") as plain, target.open("wb") as sealed:
            whole = _with_digest(_packed(plain, label))
            for part in whole if key is None else _encrypted(_rechunked(whole), key):
                sealed.write(part)
            sealed.flush()
            os.fsync(sealed.fileno())
    except OSError as error:
        raise SealError(f"{source} was not sealed: {error.strerror or error}") from error


def unseal(sealed: Path, target: Path, key: Key | None) -> Opened:
    """Write the content of `sealed` to `target`, on disk when it returns.

    `target` is overwritten, and is worth nothing if this fails: use it only after it returned.
    Raises SealError, which names `sealed` and says what is wrong with it.
    """
    try:
        with target.open("wb") as plain:
            opened = _open(sealed, plain, key)
            plain.flush()
            os.fsync(plain.fileno())
            return opened
    except OSError as error:
        raise SealError(f"{sealed} was not opened: {error.strerror or error}") from error


def check(sealed: Path, key: Key | None) -> Opened:
    """Prove that `sealed` is whole, and tell what it holds, without writing. Raises SealError."""
    try:
        return _open(sealed, None, key)
    except OSError as error:
        raise SealError(f"{sealed} was not opened: {error.strerror or error}") from error


# -- sealing ------------------------------------------------------------------------------------


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _packed(plain: BinaryIO, label: bytes) -> Iterator[bytes]:
    """The label and the content as zstd frames."""
    yield _FRAME.pack(_LABEL_FRAME, len(label)) + label
    packer = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()
    for chunk in _chunks(plain):
        yield packer.compress(chunk)
    yield packer.flush()


def _with_digest(parts: Iterable[bytes]) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
        yield part
    frame = _FRAME.pack(_DIGEST_FRAME, _DIGEST_BYTES)
    digest.update(frame)
    yield frame + digest.digest()


def _rechunked(parts: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """The same bytes in chunks of one size, each with whether it is the last, shorter one."""
    waiting = bytearray()
    for part in parts:
        waiting += part
        while len(waiting) >= _CHUNK:
            yield bytes(waiting[:_CHUNK]), False
            del waiting[:_CHUNK]
    yield bytes(waiting), True


def _encrypted(chunks: Iterable[tuple[bytes, bool]], key: Key) -> Iterator[bytes]:
    state = bindings.crypto_secretstream_xchacha20poly1305_state()
    yield _MAGIC + bindings.crypto_secretstream_xchacha20poly1305_init_push(state, key.secret)
    for chunk, last in chunks:
        yield bindings.crypto_secretstream_xchacha20poly1305_push(
            state, chunk, _MAGIC, _FINAL if last else _MESSAGE
        )


# -- opening ------------------------------------------------------------------------------------


def _open(path: Path, target: BinaryIO | None, key: Key | None) -> Opened:
    with path.open("rb") as sealed:
        encrypted = sealed.read(len(_MAGIC)) == _MAGIC
        if encrypted and key is None:
            raise SealError(f"{path} is encrypted, and there is no key to open it with")
        if not encrypted and path.name.endswith(SUFFIX_ENCRYPTED):
            raise SealError(f"{path} was altered: it does not begin as an encrypted file does")
        if not encrypted or key is None:
            sealed.seek(0)
            return _unpacked(path, _chunks(sealed), target)
        return _unpacked(path, _decrypted(path, sealed, key), target)


def _decrypted(path: Path, sealed: BinaryIO, key: Key) -> Iterator[bytes]:
    header = sealed.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES:
        raise SealError(f"{path} is cut short")
    state = bindings.crypto_secretstream_xchacha20poly1305_state()
    bindings.crypto_secretstream_xchacha20poly1305_init_pull(state, header, key.secret)
    number, tag = 0, _MESSAGE
    while chunk := sealed.read(_CHUNK + _TAG_BYTES):
        if tag == _FINAL:
            raise SealError(f"{path} was altered: there are bytes behind its end")
        number += 1
        if len(chunk) < _TAG_BYTES:
            raise SealError(f"{path} is cut short")
        try:
            plain, tag = bindings.crypto_secretstream_xchacha20poly1305_pull(state, chunk, _MAGIC)
        except CryptoError as error:
            raise SealError(_why_not(path, number, len(chunk))) from error
        yield plain
    if tag != _FINAL:
        raise SealError(f"{path} is cut short")


def _why_not(path: Path, number: int, size: int) -> str:
    if number == 1:
        return f"{path} was altered in its first chunk, or sealed with another key"
    if size < _CHUNK + _TAG_BYTES:
        return f"{path} was altered in its chunk {number}, is cut short there or longer than it was"
    return f"{path} was altered in its chunk {number}"


def _without_digest(path: Path, parts: Iterable[bytes]) -> Iterator[bytes]:
    """The sealed bytes but for the digest at their end, which is compared."""
    digest, held = hashlib.sha256(), b""
    for part in parts:
        held += part
        ready, held = held[:-_TRAILER_BYTES], held[-_TRAILER_BYTES:]
        digest.update(ready)
        yield ready
    frame, found = held[: _FRAME.size], held[_FRAME.size :]
    if frame != _FRAME.pack(_DIGEST_FRAME, _DIGEST_BYTES):
        raise SealError(f"{path} is cut short, or was altered at its end")
    digest.update(frame)
    if digest.digest() != found:
        raise SealError(f"{path} was altered: its bytes are not those of its digest")


def _unpacked(path: Path, parts: Iterator[bytes], target: BinaryIO | None) -> Opened:
    inside = _without_digest(path, parts)
    label, rest = _label(inside)
    unpacker = zstandard.ZstdDecompressor().decompressobj()
    digest, size = hashlib.sha256(), 0
    broken = "" if label is not None else "it does not begin with a label"
    for part in chain((rest,), inside):
        if broken or not part:
            continue  # read on: the digest at the end says better what is wrong
        try:
            plain = unpacker.decompress(part)
        except zstandard.ZstdError as error:
            broken = str(error)
            continue
        size += len(plain)
        digest.update(plain)
        if target is not None:
            target.write(plain)
    if not broken and (not unpacker.eof or unpacker.unused_data):
        broken = "its content does not end where it should"
    if broken or label is None:
        raise SealError(f"{path} is no sealed file: {broken}")
    return Opened(label, size, digest.hexdigest())


def _label(inside: Iterator[bytes]) -> tuple[bytes | None, bytes]:
    """The label, None when there is none, and the bytes behind it that were read with it."""
    head = bytearray()
    wanted = _FRAME.size
    for part in inside:
        head += part
        if len(head) >= _FRAME.size:
            magic, length = _FRAME.unpack_from(head)
            if magic != _LABEL_FRAME or length > LONGEST_LABEL:
                break
            wanted = _FRAME.size + length
            if len(head) >= wanted:
                return bytes(head[_FRAME.size : wanted]), bytes(head[wanted:])
    return None, b""
