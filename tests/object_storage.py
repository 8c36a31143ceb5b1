"""Object storage on loopback: a real S3 API, and what stands between it and us on a bad day."""

from __future__ import annotations

import http.client
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3

from tap_trading.archive.objects import ObjectStore, Patience, Place

BUCKET = "tap-copies"
SECRET = "not-secret-at-all"
#: Tests do not wait as long as a machine does.
IMPATIENT = Patience(
    attempts=4, first_pause_s=0.01, longest_pause_s=0.05, connect_s=2.0, answer_s=2.0
)


class Storage:
    """The S3 API with one empty bucket, behind a proxy that may misbehave."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.direct = f"http://127.0.0.1:{port}"
        self.client: Any = boto3.session.Session().client(
            "s3",
            endpoint_url=self.direct,
            region_name="us-east-1",
            aws_access_key_id="ops",
            aws_secret_access_key=SECRET,
        )
        self.client.create_bucket(Bucket=BUCKET)
        self.proxy = Proxy(port, host)

    @property
    def endpoint(self) -> str:
        """Where the proxy listens."""
        return f"http://{self.proxy.host}:{self.proxy.port}"

    def store(self, prefix: str = "machine", patience: Patience = IMPATIENT) -> ObjectStore:
        place = Place(BUCKET, "app", SECRET, self.endpoint, "us-east-1", prefix)
        return ObjectStore(place, patience)

    def settings(self, folder: Path, prefix: str = "machine") -> dict[str, str]:
        """The environment of a process that uses it."""
        secret = folder / "s3-secret"
        secret.write_text(f"{SECRET}\n")
        return {
            "TAP_S3_BUCKET": BUCKET,
            "TAP_S3_ENDPOINT": self.endpoint,
            "TAP_S3_PREFIX": prefix,
            "TAP_S3_ACCESS_KEY_ID": "app",
            "TAP_S3_SECRET_FILE": str(secret),
        }

    def stored(self) -> list[str]:
        """The keys of all objects, with their prefix."""
        found = self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return [item["Key"] for item in found]

    def content(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def alter(self, key: str, change: Callable[[bytearray], None]) -> None:
        """Change an object behind everybody's back; its metadata stay as they were."""
        found = self.client.get_object(Bucket=BUCKET, Key=key)
        content = bytearray(found["Body"].read())
        change(content)
        self.client.put_object(
            Bucket=BUCKET, Key=key, Body=bytes(content), Metadata=found["Metadata"]
        )

    def unfinished(self) -> list[str]:
        """The keys of uploads in parts that neither were completed nor given up."""
        found = self.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        return [item["Key"] for item in found]

    def empty(self) -> None:
        for key in self.stored():
            self.client.delete_object(Bucket=BUCKET, Key=key)
        for upload in self.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
            self.client.abort_multipart_upload(
                Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"]
            )
        self.proxy.heal()


@contextmanager
def running(host: str = "127.0.0.1") -> Iterator[Storage]:
    """A storage for as long as it is needed; its proxy listens at this address of ours."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # not a line for each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    storage = Storage(server.get_host_and_port()[1], host)
    try:
        yield storage
    finally:
        storage.proxy.close()
        storage.client.close()
        server.stop()


#: What a bad day does to a request: given its method and number, an answer's status and code, or
#: one of the words below, or None to pass it on.
Fault = Callable[[str, int], "tuple[int, str] | str | None"]
RESET, CUT, HANG = "reset", "cut", "hang"


class Proxy:
    """Passes requests on to the storage, unless a fault says otherwise."""

    def __init__(self, target: int, host: str) -> None:
        self._target = target
        self.host = host
        self.requests: list[str] = []  # the method of each, also of those that were not passed on
        self.fault: Fault | None = None
        self.bytes_per_s = 0.0  # 0: as fast as it goes
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.listen()

    def heal(self) -> None:
        """From now on all is well."""
        self.fault, self.bytes_per_s, self.requests = None, 0.0, []
        if self._server is None:
            self.listen()

    def listen(self) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10

            def log_message(self, *_: object) -> None:
                pass

            def handle(self) -> None:
                with suppress(OSError):  # who asked was killed
                    super().handle()

            def _any(self) -> None:
                with suppress(OSError):  # who asked is gone
                    proxy._pass_on(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any  # noqa: N815 - the names are http.server's

        server = ThreadingHTTPServer((self.host, self.port), Handler, bind_and_activate=False)
        server.allow_reuse_address = True
        server.daemon_threads = True
        server.block_on_close = False
        server.server_bind()
        server.server_activate()
        self.port, self._server = server.server_port, server
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Refuse connections from now on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _pass_on(self, asked: BaseHTTPRequestHandler) -> None:
        self.requests.append(asked.command)
        fault = self.fault(asked.command, len(self.requests)) if self.fault else None
        if fault == RESET:
            self._reset(asked)
            return
        if fault == HANG:
            time.sleep(5)
            return
        if asked.headers.get("Expect") == "100-continue":
            asked.send_response_only(100)
            asked.end_headers()
        body = self._slowly(asked.rfile, int(asked.headers.get("Content-Length") or 0))
        if isinstance(fault, tuple):
            status, code = fault
            text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
            self._answer(asked, status, {"Content-Type": "application/xml"}, text)
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self._target, timeout=30)
        try:
            upstream.request(asked.command, asked.path, body, dict(asked.headers.items()))
            answer = upstream.getresponse()
            content = answer.read()
        finally:
            upstream.close()
        headers = {
            name: value
            for name, value in answer.getheaders()
            if name.lower() not in ("connection", "transfer-encoding", "date", "server")
        }
        self._answer(asked, answer.status, headers, content, cut=fault == CUT)

    def _answer(
        self,
        asked: BaseHTTPRequestHandler,
        status: int,
        headers: dict[str, str],
        content: bytes,
        *,
        cut: bool = False,
    ) -> None:
        asked.send_response(status)
        headers = {"Content-Length": str(len(content)), **headers}
        for name, value in headers.items():
            asked.send_header(name, value)
        asked.end_headers()
        if asked.command == "HEAD":
            return
        if cut:
            asked.wfile.write(content[: len(content) // 2])
            asked.close_connection = True
            return
        pace = 65536
        for begin in range(0, len(content), pace):
            asked.wfile.write(content[begin : begin + pace])
            if self.bytes_per_s:
                time.sleep(pace / self.bytes_per_s)

    def _slowly(self, file: Any, size: int) -> bytes:
        body = bytearray()
        while len(body) < size:
            chunk = file.read(min(65536, size - len(body)))
            if not chunk:
                break
            body += chunk
            if self.bytes_per_s:
                time.sleep(len(chunk) / self.bytes_per_s)
        return bytes(body)

    @staticmethod
    def _reset(asked: BaseHTTPRequestHandler) -> None:
        asked.close_connection = True
        linger = struct.pack("ii", 1, 0)  # an RST, no orderly end
        asked.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        asked.connection.close()
