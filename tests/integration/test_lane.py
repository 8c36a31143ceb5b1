"""The lane on the wire: what it takes, what it hands over, and how it ends."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient
from tests.integration.conftest import Serve
from tests.integration.signed_in import Trader, live_price, sign_in

import live_market
from tap_trading.base.db import WriterLock
from tap_trading.base.redis import Redis
from tap_trading.services import api, lane


@pytest.fixture
async def client(serve: Serve, redis: Redis) -> AsyncIterator[TestClient]:
    async with serve(api.build) as client, live_price(client, redis):
        yield client


@pytest.fixture
async def ada(client: TestClient) -> Trader:
    return await sign_in(client)


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The chunks that lanes hand over to aiohttp."""
    chunks: list[bytes] = []
    original = lane.BetLane._hand_over

    def hand_over(self: lane.BetLane, data: bytes) -> None:
        chunks.append(data)
        original(self, data)

    monkeypatch.setattr(lane.BetLane, "_hand_over", hand_over)
    return chunks


class Wire:
    """A connection to the API, spoken to in bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], dict[str, object]]:
        """Status, headers (lower case) and body of the next answer."""
        async with asyncio.timeout(10):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            if head.startswith("HTTP/1.1 100 "):
                head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status, *lines = head.rstrip().split("\r\n")
            headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
            body = await self._reader.readexactly(int(headers["content-length"]))
        return int(status.split()[1]), headers, json.loads(body)

    async def ended(self) -> bool:
        async with asyncio.timeout(10):
            return await self._reader.read(1) == b""


@asynccontextmanager
async def wire(client: TestClient) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    yield Wire(reader, writer)
    writer.close()


def cell(number: int = 0) -> str:
    return live_market.cells()[live_market.GEOMETRY.rows * 2 + number].cell_id


def bet(trader: Trader, number: int = 0, *, extra: str = "", key: str = "") -> bytes:
    body = json.dumps({"cell_id": cell(number), "amount": 100})
    return (
        f"POST /api/bets HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {trader.token}\r\n"
        f"Idempotency-Key: {key or f'key-{number}'}\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
        f"{body}"
    ).encode()


async def test_bets_of_one_connection_stay_in_the_lane(
    client: TestClient, ada: Trader, handed_over: list[bytes]
) -> None:
    handed_over.clear()
    async with wire(client) as connection:
        for number in range(5):
            connection.send(bet(ada, number))
            status, headers, body = await connection.answer()
            assert (status, body["status"]) == (202, "accepted")
            assert headers["content-type"] == "application/json; charset=utf-8"
            assert headers["x-request-id"].startswith("req_")
            assert headers["date"].endswith("GMT")
            assert "connection" not in headers
    assert handed_over == []


async def test_pipelined_bets_are_answered_in_their_order(client: TestClient, ada: Trader) -> None:
    async with wire(client) as connection:
        connection.send(bet(ada, 0))
        await asyncio.sleep(0)
        for number in range(1, 5):
            connection.send(bet(ada, number))
            await asyncio.sleep(0.002)
        ids = [(await connection.answer())[2]["cell_id"] for _ in range(5)]
    assert ids == [cell(number) for number in range(5)]


@pytest.mark.parametrize(
    "extra",
    [
        "Expect: 100-continue\r\n",
        "Content-Encoding: identity\r\n",
        "Cookie: caf\u00e9\r\n",
        "Cookie: a=1\r\ncookie: b=2\r\n",
        "te: trailers\r\n",
        "Te: trailers\r\n",
        "Connection: close\r\n",
        "TE: trailers\r\n",
    ],
)
async def test_unusual_requests_are_handed_over_and_answered_alike(
    client: TestClient, ada: Trader, handed_over: list[bytes], extra: str
) -> None:
    handed_over.clear()
    async with wire(client) as connection:
        connection.send(bet(ada, extra=extra))
        status, headers, body = await connection.answer()
        assert (status, body["status"]) == (202, "accepted")
        # The next bet of this client may take the lane again.
        assert headers["connection"] == "close"
        assert await connection.ended()
    assert len(handed_over) == 1


async def test_a_bet_in_pieces_is_handed_over(
    client: TestClient, ada: Trader, handed_over: list[bytes]
) -> None:
    handed_over.clear()
    whole = bet(ada)
    for at, split in enumerate((10, 60, len(whole) - 3)):
        async with wire(client) as connection:
            connection.send(whole[:split])
            await asyncio.sleep(0.05)
            connection.send(whole[split:])
            status, _, body = await connection.answer()
            assert (status, body["status"]) == (202, "accepted"), at
    assert len(handed_over) == 3


async def test_bets_in_one_chunk_are_answered_in_their_order(
    client: TestClient, ada: Trader, handed_over: list[bytes]
) -> None:
    handed_over.clear()
    async with wire(client) as connection:
        connection.send(b"".join(bet(ada, number) for number in range(3)))
        ids = [(await connection.answer())[2]["cell_id"] for _ in range(3)]
    assert ids == [cell(number) for number in range(3)]
    assert handed_over == []


async def test_a_connection_goes_from_bets_to_other_calls(client: TestClient, ada: Trader) -> None:
    async with wire(client) as connection:
        connection.send(bet(ada))
        assert (await connection.answer())[0] == 202
        connection.send(b"GET /api/version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert "version" in (await connection.answer())[2]
        connection.send(b"GET /api/version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert "version" in (await connection.answer())[2]


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /api/bets HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n{}  ",
        b"POST /api/bets HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n{}",
        b"POST /api/bets HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /api/bets HTTP/1.1\r\nHost x\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /api/bets HTTP/1.1\r\nHost: x\r\n Folded: 1\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /api/bets HTTP/1.1\r\nHost: x\r\nA\x00B: 1\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
async def test_what_is_no_http_is_never_a_bet(client: TestClient, request_: bytes) -> None:
    async with wire(client) as connection:
        connection.send(request_)
        async with asyncio.timeout(10):
            head = await connection._reader.readuntil(b"\r\n")
        assert head.split()[1] in (b"400", b"401")


async def test_a_client_that_vanishes_has_its_bet_all_the_same(
    client: TestClient, ada: Trader
) -> None:
    async with wire(client) as connection:
        connection.send(bet(ada))
        connection.writer.transport.abort()
    async with asyncio.timeout(10):
        while not (await ada.json("/api/bets"))["items"]:
            await asyncio.sleep(0.02)
    async with wire(client) as connection:
        connection.send(bet(ada))
        status, _, body = await connection.answer()
    assert (status, body["balance"]) == (202, 100_000 - 100)


async def test_a_client_that_sends_ahead_without_end_is_held(
    client: TestClient, ada: Trader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "_MOST_AHEAD", 500)
    async with wire(client) as connection:
        for number in range(20):
            connection.send(bet(ada, number))
            await asyncio.sleep(0)
        for _ in range(20):
            assert (await connection.answer())[0] == 202


async def test_whoever_waits_behind_a_batch_that_fails_is_told(
    client: TestClient, ada: Trader, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = WriterLock.held
    monkeypatch.setattr(WriterLock, "held", lambda self: held(self, 0.5))
    lock = WriterLock(database)
    async with AsyncExitStack() as stack:
        with lock.held():
            waiting = []
            for number in range(4):
                connection = await stack.enter_async_context(wire(client))
                connection.send(bet(ada, number))
                waiting.append(connection)
                await asyncio.sleep(0.05)  # the first is being written by now
            for connection in waiting:
                status, headers, body = await connection.answer()
                assert (status, body["code"]) == (503, "storage_unavailable")
                assert int(headers["retry-after"]) > 0
        for number, connection in enumerate(waiting):
            connection.send(bet(ada, number))
            assert (await connection.answer())[0] == 202
    lock.close()


async def test_a_service_that_stops_answers_first(
    serve: Serve, redis: Redis, database: Path
) -> None:
    lock = WriterLock(database)
    async with AsyncExitStack() as stack, serve(api.build) as client, live_price(client, redis):
        ada = await sign_in(client)
        busy = await stack.enter_async_context(wire(client))
        idle = await stack.enter_async_context(wire(client))
        for number, connection in enumerate((busy, idle)):
            connection.send(bet(ada, number))
            assert (await connection.answer())[0] == 202
        # Nothing can be written until the service is about to end.
        held = stack.enter_context(ExitStack())
        held.enter_context(lock.held())
        asyncio.get_running_loop().call_later(0.5, held.close)
        busy.send(bet(ada, 2))
        await asyncio.sleep(0.05)
        stack.push_async_callback(_both_ended, busy, idle)
    lock.close()


async def _both_ended(busy: Wire, idle: Wire) -> None:
    status, headers, _ = await busy.answer()
    assert (status, headers["connection"]) == (202, "close")
    assert await busy.ended()
    assert await idle.ended()
