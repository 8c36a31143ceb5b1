"""Services wired as in production, inside the test's own event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from tap_trading.base import config
from tap_trading.cli import main
from tap_trading.services.runtime import Build, Runner


class Server(TestServer):
    """A server whose connections begin where those of a service do."""

    async def _make_runner(self, **kwargs: Any) -> Runner:
        return Runner(self.app, **kwargs)


Serve = Callable[..., AbstractAsyncContextManager[TestClient]]

#: Runs `tap` with these words: its exit code and what it printed on both streams.
Tap = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_tap(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tap:
    """`tap` in this process, without a terminal."""
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main.main(words)
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err

    return run


@pytest.fixture
def serve(environment: dict[str, str]) -> Serve:
    """`async with serve(build, TAP_X="…") as client`: a running service."""

    @asynccontextmanager
    async def served(build: Build, **settings: str) -> AsyncIterator[TestClient]:
        failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        async with (
            build(config.load({**environment, **settings}), failed) as app,
            Server(app) as server,
            TestClient(server) as client,
        ):
            yield client

    return served


async def problem(answer: ClientResponse) -> dict[str, Any]:
    """The body of an answer that is a problem, as RFC 9457 has it."""
    assert answer.content_type == "application/problem+json"
    body = dict(await answer.json())
    assert body["status"] == answer.status
    assert body["type"] == f"urn:tap-trading:problem:{body['code']}"
    assert body["detail"]
    assert body["request_id"] == answer.headers["X-Request-ID"]
    if answer.status in (429, 503):
        assert int(answer.headers["Retry-After"]) > 0
    return body
