"""The WebSocket protocol as far as a client of a benchmark needs it, at the least cost."""

import struct
from collections.abc import Iterator

TEXT, CLOSE, PING = 0x1, 0x8, 0x9
PONG = 0xA
#: Final frames only: the service sends no fragments.
_FINAL, _MASKED = 0x80, 0x80
_SHORT, _MIDDLE = 125, 126
#: A mask of zeros leaves the payload as it is, and is a mask all the same.
_MASK = b"\0\0\0\0"


def frame(opcode: int, payload: bytes) -> bytes:
    """A client's frame."""
    size = len(payload)
    if size <= _SHORT:
        return bytes((_FINAL | opcode, _MASKED | size)) + _MASK + payload
    return struct.pack("!BBH", _FINAL | opcode, _MASKED | _MIDDLE, size) + _MASK + payload


def handshake(path: str, host: str) -> bytes:
    """The request of an upgrade."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
    ).encode()


class Reader:
    """Cuts what a server sends into frames."""

    def __init__(self) -> None:
        self.rest = b""  # of a frame that is not complete

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
        """Opcode, payload and the whole frame of each that is complete by now."""
        data = self.rest + data if self.rest else data
        at = 0
        while (header := self._header(data, at)) is not None:
            begin, end = header
            if end > len(data):
                break
            yield data[at] & 0x0F, data[begin:end], data[at:end]
            at = end
        self.rest = data[at:]

    @staticmethod
    def _header(data: bytes, at: int) -> tuple[int, int] | None:
        """Where the payload of the frame at `at` begins and ends; None: not to be told yet."""
        if len(data) < at + 2:
            return None
        size = data[at + 1]
        if size <= _SHORT:
            return at + 2, at + 2 + size
        wide, form = (2, "!H") if size == _MIDDLE else (8, "!Q")
        begin = at + 2 + wide
        if len(data) < begin:
            return None
        return begin, begin + int(struct.unpack_from(form, data, at + 2)[0])
