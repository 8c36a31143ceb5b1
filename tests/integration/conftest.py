"""Services wired as in production, inside the test's own event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from aiohttp.test_utils import TestClient, TestServer

from tap_trading.base import config
from tap_trading.services.runtime import Build

Serve = Callable[..., AbstractAsyncContextManager[TestClient]]


@pytest.fixture
def serve(environment: dict[str, str]) -> Serve:
    """`async with serve(build, TAP_X="…") as client`: a running service."""

    @asynccontextmanager
    async def served(build: Build, **settings: str) -> AsyncIterator[TestClient]:
        failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        async with (
            build(config.load({**environment, **settings}), failed) as app,
            TestServer(app) as server,
            TestClient(server) as client,
        ):
            yield client

    return served
