"""The stream as a browser meets it."""

import asyncio
from typing import Any

import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType, WSServerHandshakeError
from aiohttp.test_utils import TestClient
from tests.integration.conftest import Serve

import live_market
from live_market import offer, publish_offer, publish_price
from tap_trading.base import background
from tap_trading.base.clock import system_clock
from tap_trading.base.redis import Redis
from tap_trading.market.offer import OFFER_KEY, Offer
from tap_trading.market.point import HISTORY_KEY, PricePoint
from tap_trading.market.state import MarketState
from tap_trading.services import ws
from tap_trading.stream.client import Client, CloseCode, framed


async def until(socket: ClientWebSocketResponse, kind: str) -> dict[str, Any]:
    """The next message of a kind."""
    async with asyncio.timeout(10):
        while True:
            message = dict(await socket.receive_json())
            if message["type"] == kind:
                return message


async def publish(redis: Redis, *prices: int) -> list[PricePoint]:
    """An offer, and the prices of consecutive bars."""
    now = system_clock()
    await publish_offer(redis, offer(now))
    return [await publish_price(redis, now + 100 * i, price) for i, price in enumerate(prices)]


async def subscribed(client: TestClient) -> None:
    async with asyncio.timeout(10):
        while (await client.get("/healthz")).status != 200:
            await asyncio.sleep(0.3)


async def test_hello_is_a_snapshot(serve: Serve, redis: Redis) -> None:
    now = system_clock() // 1000 * 1000
    for i, cents in enumerate((4_200_000, 4_200_500, 4_200_100)):
        t = now - 3000 + i * 1000
        await redis.zadd(HISTORY_KEY, {PricePoint(t, i, cents).encode(): t})
    made = offer(system_clock())
    await redis.set(OFFER_KEY, made.encode())
    async with serve(ws.build) as client, client.ws_connect("/ws") as socket:
        hello = await socket.receive_json()
    assert hello["type"] == "hello"
    assert set(hello) == {
        *("type", "epoch", "seq", "server_time", "price", "bars", "grid", "state"),
    }
    assert [bar["price"] for bar in hello["bars"]] == [4_200_000, 4_200_500, 4_200_100]
    assert hello["bars"][2] == {
        "t": now - 1000,
        "price": 4_200_100,
        "low": 4_200_100,
        "high": 4_200_500,
    }
    assert hello["price"] == hello["bars"][-1]
    assert hello["state"] == "open"
    assert len(hello["grid"]["columns"]) == 8
    assert len(hello["grid"]["cells"]) == 8 * 12
    assert hello["grid"]["cells"][0] == {
        "cell_id": next(iter(made.cells)),
        "reward_rate": "2.0582",
    }


async def test_hello_without_any_price(serve: Serve) -> None:
    async with serve(ws.build) as client, client.ws_connect("/ws") as socket:
        hello = await socket.receive_json()
        status = await socket.receive_json()
    assert (hello["price"], hello["bars"], hello["state"]) == (None, [], "suspended")
    assert status == {
        "type": "status",
        "state": "suspended",
        "reason": "no_price",
        "retry_in_ms": None,
    }
    assert hello["grid"] == {"columns": [], "cells": []}


async def test_published_prices_reach_every_client(serve: Serve, redis: Redis) -> None:
    async with serve(ws.build) as client:
        await subscribed(client)
        sockets = [await client.ws_connect("/ws") for _ in range(5)]
        for socket in sockets:
            await until(socket, "hello")
        (first,) = await publish(redis, 4_200_000)
        for socket in sockets:
            message = await until(socket, "price")
            assert message == {
                "type": "price",
                "t": first.t,
                "price": 4_200_000,
                "low": 4_200_000,
                "high": 4_200_000,
            }
        for socket in sockets:
            await socket.close()


async def states(socket: ClientWebSocketResponse, count: int) -> list[tuple[str, str | None]]:
    """The next so many states, with their reasons."""
    found = [await until(socket, "status") for _ in range(count)]
    return [(status["state"], status["reason"]) for status in found]


async def test_the_grid_comes_with_its_rates_and_goes_with_a_suspension(
    serve: Serve, redis: Redis
) -> None:
    async with serve(ws.build) as client, client.ws_connect("/ws") as socket:
        await subscribed(client)
        await publish(redis, 4_200_000)
        grid = await until(socket, "grid")
        assert len(grid["columns"]) == 8
        assert {cell["reward_rate"] for cell in grid["cells"]} == {"2.0582"}
        made = Offer(
            live_market.bar_before(system_clock()), MarketState.SUSPENDED, "quorum_lost", 30_000
        )
        await publish_offer(redis, made)
        while (status := await until(socket, "status"))["reason"] != "quorum_lost":
            pass
        assert (status["state"], status["retry_in_ms"]) == ("suspended", 30_000)
        assert await until(socket, "grid") == {"type": "grid", "columns": [], "cells": []}


async def test_the_market_degrades_and_says_so(serve: Serve, redis: Redis) -> None:
    async with serve(ws.build) as client, client.ws_connect("/ws") as socket:
        await subscribed(client)
        await publish(redis, 4_200_000)
        assert await states(socket, 3) == [
            ("suspended", "no_price"),
            ("open", None),
            ("degraded", "no_price"),
        ]


async def test_echo_ping_and_misunderstandings(serve: Serve) -> None:
    async with serve(ws.build) as client, client.ws_connect("/ws") as socket:
        await socket.send_json({"type": "echo", "payload": {"deep": [1, "zwei"]}})
        assert await until(socket, "echo") == {"type": "echo", "payload": {"deep": [1, "zwei"]}}
        await socket.send_json({"type": "ping"})
        assert (await until(socket, "pong"))["server_time"].endswith("Z")
        for said, code in (
            ("not json", "malformed"),
            ("[]", "malformed"),
            ('{"type": 5}', "malformed"),
            ('{"type": "steal"}', "unknown_type"),
        ):
            await socket.send_str(said)
            assert (await until(socket, "error"))["code"] == code
        await socket.ping(b"beat")
        await socket.send_json({"type": "ping"})
        await until(socket, "pong")


async def closing_code(socket: ClientWebSocketResponse) -> int | None:
    async with asyncio.timeout(20):
        while (await socket.receive()).type not in (
            *(WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.CLOSING, WSMsgType.ERROR),
        ):
            pass
    return socket.close_code


async def test_binary_is_refused(serve: Serve) -> None:
    async with serve(ws.build) as client, client.ws_connect("/ws") as socket:
        await socket.send_bytes(b"\x00")
        assert await closing_code(socket) == 1003


async def test_a_message_too_big_is_refused(serve: Serve) -> None:
    async with serve(ws.build) as client, client.ws_connect("/ws") as socket:
        await socket.send_str("x" * 5000)
        assert await closing_code(socket) == 1009


async def test_a_chatterbox_is_closed(serve: Serve) -> None:
    async with serve(ws.build) as client, client.ws_connect("/ws") as socket:
        for _ in range(60):
            await socket.send_json({"type": "ping"})
        assert await closing_code(socket) == CloseCode.TOO_MANY_MESSAGES


@pytest.mark.parametrize(
    ("origin", "welcome"),
    [
        (None, True),
        ("https://partner.example", True),
        ("http://{host}", True),
        ("https://evil.example", False),
        ("null", False),
        ("http://[", False),
        ("http://{host}.evil.example", False),
    ],
)
async def test_origins_are_checked(serve: Serve, origin: str | None, welcome: bool) -> None:
    async with serve(ws.build, TAP_ALLOWED_ORIGINS="https://partner.example") as client:
        host = f"{client.host}:{client.port}"
        headers = {} if origin is None else {"Origin": origin.format(host=host)}
        if welcome:
            async with client.ws_connect("/ws", headers=headers) as socket:
                await until(socket, "hello")
        else:
            with pytest.raises(WSServerHandshakeError) as caught:
                await client.ws_connect("/ws", headers=headers)
            assert caught.value.status == 403


async def test_a_plain_request_is_told_to_upgrade(serve: Serve) -> None:
    async with serve(ws.build) as client:
        answer = await client.get("/ws")
        assert answer.status == 426
        assert (await answer.json())["code"] == "upgrade_required"


async def test_one_client_too_many_is_refused(serve: Serve) -> None:
    async with serve(ws.build, TAP_WS_MAX_CLIENTS="1") as client, client.ws_connect("/ws"):
        with pytest.raises(WSServerHandshakeError) as caught:
            await client.ws_connect("/ws")
        assert caught.value.status == 503
        assert caught.value.headers
        assert caught.value.headers["Retry-After"]


async def test_a_restart_is_announced_and_closes_with_1012(serve: Serve) -> None:
    async with serve(ws.build) as client:
        socket = await client.ws_connect("/ws")
        await until(socket, "hello")
        closing = asyncio.create_task(client.server.close())
        while (status := await until(socket, "status"))["reason"] != "restart":
            pass
        assert 0 <= status["retry_in_ms"] <= 2000
        assert await closing_code(socket) == CloseCode.RESTART
        await closing


async def deaf(_client: Client, _said: Any) -> None:
    """Answers nothing."""


class Stuck:
    """A socket that takes nothing until it is told to."""

    closed = False

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.open = asyncio.Event()
        self.closed_with: int | None = None

    async def send_frame(self, frame: bytes, _opcode: WSMsgType) -> None:
        await self.open.wait()
        self.sent.append(frame)

    async def close(self, *, code: int) -> None:
        self.closed_with = code


async def test_a_slow_client_gets_the_newest_price_only() -> None:
    stuck = Stuck()
    client = Client(stuck, lambda: "now", deaf)  # type: ignore[arg-type] # a stand-in
    pump = asyncio.create_task(client.pump())
    client.send(b"hello")
    await asyncio.sleep(0)
    for i in range(1000):
        client.offer("price", b"price %d" % i)
    stuck.open.set()
    await asyncio.sleep(0.01)
    assert stuck.sent == [b"hello", b"price 999"]
    pump.cancel()
    await asyncio.gather(pump, return_exceptions=True)


async def test_a_client_that_does_not_keep_up_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tap_trading.stream.client.SEND_TIMEOUT_S", 0.05)
    stuck = Stuck()
    client = Client(stuck, lambda: "now", deaf)  # type: ignore[arg-type] # a stand-in
    for i in range(10):
        client.send(b"%d" % i)
    async with asyncio.timeout(5):
        await client.pump()
    assert stuck.closed_with == CloseCode.TOO_SLOW


async def test_what_waits_for_a_client_is_bounded() -> None:
    client = Client(Stuck(), lambda: "now", deaf)  # type: ignore[arg-type] # a stand-in
    for i in range(512):
        client.send(b"%d" % i)
    assert client.closed_with is None
    client.send(b"one too many")
    assert client.closed_with == CloseCode.TOO_SLOW


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (0, b"\x81\x00"),
        (125, b"\x81\x7d"),
        (126, b"\x81\x7e\x00\x7e"),
        (65_535, b"\x81\x7e\xff\xff"),
        (65_536, b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ],
)
def test_a_frame_says_how_long_it_is(size: int, head: bytes) -> None:
    """RFC 6455, section 5.2: final, text, not masked."""
    assert framed(b"x" * size) == head + b"x" * size


class Socket:
    """A transport that takes what it is given, `unsent` bytes of which are on their way still."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.unsent = 0

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return False


async def test_who_keeps_up_gets_it_at_once_and_in_order() -> None:
    stuck, socket = Stuck(), Socket()
    client = Client(stuck, lambda: "now", deaf, socket)  # type: ignore[arg-type] # stand-ins
    client.offer("price", b"1")
    client.send(b"2")
    assert socket.written == [framed(b"1"), framed(b"2")]
    socket.unsent = 1_000_000
    client.offer("price", b"3")
    client.offer("price", b"4")
    client.send(b"5")
    socket.unsent = 0
    client.send(b"6")  # not before those that wait
    assert len(socket.written) == 2
    pump = asyncio.create_task(client.pump())
    stuck.open.set()
    async with asyncio.timeout(5):
        while len(stuck.sent) < 3:
            await asyncio.sleep(0.01)
    client.send(b"7")
    assert stuck.sent == [b"5", b"6", b"4"]
    assert socket.written[2:] == [framed(b"7")]
    await background.end(pump)
