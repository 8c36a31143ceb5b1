"""The frames that a load's WebSockets write and read."""

import struct

import pytest

from bench.frames import CLOSE, TEXT, Reader, frame


def sent(opcode: int, payload: bytes) -> bytes:
    """A server's frame."""
    size = len(payload)
    if size <= 125:
        return bytes((0x80 | opcode, size)) + payload
    if size < 1 << 16:
        return struct.pack("!BBH", 0x80 | opcode, 126, size) + payload
    return struct.pack("!BBQ", 0x80 | opcode, 127, size) + payload


STREAM = sent(TEXT, b"short") + sent(TEXT, b"m" * 300) + sent(TEXT, b"l" * 70_000)


@pytest.mark.parametrize("chunk", [1, 7, 1000, len(STREAM)])
def test_frames_are_read_however_they_are_cut(chunk: int) -> None:
    reader, found = Reader(), []
    for at in range(0, len(STREAM), chunk):
        found += [(opcode, len(payload)) for opcode, payload, _ in reader.feed(STREAM[at:][:chunk])]
    assert found == [(TEXT, 5), (TEXT, 300), (TEXT, 70_000)]
    assert reader.rest == b""


def test_a_client_s_frame_is_masked_with_nothing() -> None:
    assert frame(CLOSE, b"\x03\xf4") == b"\x88\x82\0\0\0\0\x03\xf4"
    assert frame(TEXT, b"x" * 200)[:8] == b"\x81\xfe\x00\xc8\0\0\0\0"
