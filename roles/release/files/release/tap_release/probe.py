"""Questions to the services: over HTTP and WebSocket, on a port, a private socket or through Nginx.

By the machine's own Python: whether a release works is not for the release to say.
"""

import base64
import http.client
import json
import os
import socket
import ssl
import struct
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

#: Each question gets so long, in s.
_TIMEOUT_S = 3.0
_ECHO = {"type": "echo", "probe": "are you there?"}
#: Frames that may come before the echo, prices and the like.
_MOST_FRAMES = 200

# Of RFC 6455.
_TEXT, _CLOSE = 1, 8
_SIZE_IN_2, _SIZE_IN_8 = 126, 127

#: The status and the body.
Answer = tuple[int, dict[str, object]]
#: Makes a connection.
Where = Callable[[], http.client.HTTPConnection]

#: What asking may raise.
UNANSWERED = (OSError, ValueError, KeyError, http.client.HTTPException)


class _Privately(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """As http.client calls it."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT_S)
        self.sock.connect(str(self._path))


def on_port(port: int) -> Where:
    """A service's own port."""
    return lambda: http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)


def on_socket(path: Path) -> Where:
    """A service's private socket."""
    return lambda: _Privately(path)


def through_nginx() -> http.client.HTTPConnection:
    """The site, as everybody reaches it."""
    context = ssl.create_default_context()
    # The certificate is for the site's name, not for this address.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection("127.0.0.1", timeout=_TIMEOUT_S, context=context)


def ask(where: Where, path: str) -> Answer:
    """Ask for a JSON object. Raises UNANSWERED."""
    status, body = get(where, path)
    said = json.loads(body)
    if not isinstance(said, dict):
        raise http.client.HTTPException(f"{said!r} is not an object")
    return status, said


def get(where: Where, path: str) -> tuple[int, bytes]:
    """Ask for anything. Raises UNANSWERED."""
    connection = where()
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def echo(where: Where) -> None:
    """A WebSocket greets, and gives back what it is told. Raises UNANSWERED."""
    connection = where()
    try:
        key = base64.b64encode(os.urandom(16)).decode()
        connection.request(
            "GET",
            "/ws",
            headers={
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": key,
            },
        )
        sock = connection.sock
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        if answer.status != HTTPStatus.SWITCHING_PROTOCOLS:
            raise http.client.HTTPException(f"its WebSocket says {answer.status}")
        stream = answer.fp
        if (greeting := json.loads(_frame(stream)))["type"] != "hello":
            raise http.client.HTTPException(f"it greets with {greeting['type']}")
        sock.sendall(_masked(json.dumps(_ECHO).encode()))
        for _ in range(_MOST_FRAMES):
            if json.loads(_frame(stream)) == _ECHO:
                return
        raise http.client.HTTPException("its WebSocket gives nothing back")
    finally:
        connection.close()


def _frame(stream: BinaryIO) -> bytes:
    """The next text message of a server. Raises UNANSWERED."""
    while True:
        first, size = _exactly(stream, 2)
        if size == _SIZE_IN_2:
            (size,) = struct.unpack("!H", _exactly(stream, 2))
        elif size == _SIZE_IN_8:
            (size,) = struct.unpack("!Q", _exactly(stream, 8))
        content = _exactly(stream, size)
        if first & 0xF == _TEXT:
            return content
        if first & 0xF == _CLOSE:
            raise http.client.HTTPException("it closes the WebSocket")


def _exactly(stream: BinaryIO, size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise http.client.HTTPException("its WebSocket ends")
    return content


def _masked(text: bytes) -> bytes:
    """A short text message of a client."""
    mask = os.urandom(4)
    content = bytes(byte ^ mask[place % 4] for place, byte in enumerate(text))
    return struct.pack("!BB", 0x80 | _TEXT, 0x80 | len(text)) + mask + content
