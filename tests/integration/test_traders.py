"""What a signed-in trader hears: their own bets and balance, all of them, and nobody else's."""

import asyncio
from typing import Any

import pytest
from aiohttp import ClientWebSocketResponse
from aiohttp.test_utils import TestClient
from tests.conftest import RedisServer
from tests.integration.conftest import Serve
from tests.integration.test_ws import subscribed, until

from tap_trading.auth.sessions import Sessions
from tap_trading.base.clock import system_clock
from tap_trading.base.redis import Redis
from tap_trading.ledger.queries import Bet
from tap_trading.ledger.resolving import Changes
from tap_trading.services import ws
from tap_trading.services.auth import COOKIE
from tap_trading.settlement import changes
from tap_trading.stream import traders
from tap_trading.stream.traders import KEPT

OWN = ("bet", "balance", "authenticated", "resumed", "reset", "error")


CELL = "btc-usd:1764000000:5:8420000:8421000"
PLACED = 1_763_999_980_000


def bet(user_id: str, number: int = 1) -> tuple[str, Bet]:
    """A bet that was won, with its user."""
    fields = (f"bet_{number}", CELL, 100, "won", 10_582, 105, PLACED, PLACED + 26_100)
    return user_id, Bet(*fields)


async def change(redis: Redis, *bets: tuple[str, Bet], **balances: int) -> None:
    """What the resolver says of a transaction."""
    message = changes.encode(Changes(list(bets), balances))
    assert await redis.publish(changes.CHANNEL, message) == 1


async def token(redis: Redis, user_id: str) -> str:
    return (await Sessions(redis, system_clock).open(user_id, f"address of {user_id}"))[0]


async def own(socket: ClientWebSocketResponse) -> dict[str, Any]:
    """The next message that is not of the market."""
    async with asyncio.timeout(10):
        while True:
            message = dict(await socket.receive_json())
            if message["type"] in OWN:
                return message


async def quiet(socket: ClientWebSocketResponse) -> bool:
    """Whether nothing of one's own waits."""
    await socket.send_json({"type": "ping"})
    async with asyncio.timeout(10):
        while True:
            message = dict(await socket.receive_json())
            if message["type"] == "pong":
                return True
            if message["type"] in OWN:
                return False


async def connect(
    client: TestClient, secret: str | None = None
) -> tuple[ClientWebSocketResponse, str]:
    """A connection, signed in with a token, and the epoch."""
    socket = await client.ws_connect("/ws")
    epoch = str((await until(socket, "hello"))["epoch"])
    if secret is not None:
        await socket.send_json({"type": "auth", "token": secret})
        said = await own(socket)
        assert said["type"] == "authenticated", said
    return socket, epoch


@pytest.fixture
async def ada(redis: Redis) -> str:
    return await token(redis, "ada")


async def test_own_changes_are_numbered_and_others_are_not_heard(
    serve: Serve, redis: Redis, ada: str
) -> None:
    async with serve(ws.build) as client:
        await subscribed(client)
        socket, epoch = await connect(client)
        await socket.send_json({"type": "auth", "token": ada})
        assert await own(socket) == {
            "type": "authenticated",
            "user_id": "ada",
            "epoch": epoch,
            "seq": 0,
        }
        other, _ = await connect(client, await token(redis, "bob"))
        nobody, _ = await connect(client)
        await change(redis, bet("ada", 1), bet("bob", 2), bet("eve", 3), ada=905, eve=7)
        assert await own(socket) == {
            "type": "bet",
            "seq": 1,
            "bet_id": "bet_1",
            "cell_id": CELL,
            "amount": 100,
            "status": "won",
            "reward_rate": "1.0582",
            "payout_amount": 105,
            "placed_at": "2025-11-24T15:59:40.000Z",
            "resolved_at": "2025-11-24T16:00:06.100Z",
        }
        assert await own(socket) == {"type": "balance", "seq": 2, "balance": 905}
        assert (await own(other))["bet_id"] == "bet_2"
        assert await quiet(socket)
        assert await quiet(other)
        assert await quiet(nobody)


async def test_all_of_a_traders_clients_hear_the_same(serve: Serve, redis: Redis, ada: str) -> None:
    async with serve(ws.build) as client:
        await subscribed(client)
        sockets = [(await connect(client, ada))[0] for _ in range(3)]
        await change(redis, ada=1)
        assert [await own(socket) for socket in sockets] == [
            {"type": "balance", "seq": 1, "balance": 1}
        ] * 3


@pytest.mark.parametrize("wrong", ["", "x" * 43, None, 5, "A" * 43])
async def test_a_wrong_token_is_told_and_hears_nothing(
    serve: Serve, redis: Redis, ada: str, wrong: object
) -> None:
    async with serve(ws.build) as client:
        await subscribed(client)
        socket, _ = await connect(client, ada)
        await socket.send_json({"type": "auth", "token": wrong})
        assert (await own(socket))["code"] == "unauthenticated"
        await change(redis, ada=1)
        assert await quiet(socket)


async def test_another_user_on_the_same_connection(serve: Serve, redis: Redis, ada: str) -> None:
    async with serve(ws.build) as client:
        await subscribed(client)
        socket, _ = await connect(client, ada)
        await socket.send_json({"type": "auth", "token": await token(redis, "bob")})
        assert (await own(socket))["user_id"] == "bob"
        await change(redis, ada=1, bob=2)
        assert (await own(socket))["balance"] == 2
        assert await quiet(socket)


async def test_a_revoked_session_hears_nothing_within_a_second(
    serve: Serve, redis: Redis, ada: str
) -> None:
    async with serve(ws.build) as client:
        await subscribed(client)
        socket, _ = await connect(client, ada)
        kept, _ = await connect(client, await token(redis, "ada"))
        await Sessions(redis, system_clock).revoke(ada)
        async with asyncio.timeout(1):
            assert (await own(socket))["code"] == "unauthenticated"
        await change(redis, ada=1)
        assert await quiet(socket)
        assert (await own(kept))["balance"] == 1


async def test_what_was_missed_is_delivered_after_a_reconnect(
    serve: Serve, redis: Redis, ada: str
) -> None:
    async with serve(ws.build) as client:
        await subscribed(client)
        socket, epoch = await connect(client, ada)
        await change(redis, bet("ada", 1), ada=1)
        assert (await own(socket))["seq"] == 1
        assert (await own(socket))["seq"] == 2
        await socket.close()
        await change(redis, bet("ada", 2), ada=2)
        await change(redis, bet("ada", 3), ada=3)
        again, _ = await connect(client, ada)
        await again.send_json({"type": "resume", "epoch": epoch, "seq": 2})
        missed = [await own(again) for _ in range(4)]
        assert [message["seq"] for message in missed] == [3, 4, 5, 6]
        assert [message.get("bet_id") for message in missed] == ["bet_2", None, "bet_3", None]
        assert await own(again) == {"type": "resumed", "epoch": epoch, "seq": 6}
        await again.send_json({"type": "resume", "epoch": epoch, "seq": 6})
        assert (await own(again))["type"] == "resumed"
        await change(redis, ada=4)
        assert (await own(again))["seq"] == 7


async def test_who_has_missed_too_much_starts_anew(serve: Serve, redis: Redis, ada: str) -> None:
    async with serve(ws.build) as client:
        await subscribed(client)
        socket, epoch = await connect(client, ada)
        await change(redis, *(bet("ada", number) for number in range(KEPT + 1)))
        for _ in range(KEPT + 1):
            await own(socket)
        for said in (
            {"epoch": epoch, "seq": 0},  # one more than is kept
            {"epoch": epoch, "seq": KEPT + 2},  # never told
            {"epoch": epoch, "seq": -1},
            {"epoch": epoch, "seq": True},
            {"epoch": epoch, "seq": "1"},
            {"epoch": "another process", "seq": KEPT + 1},
            {},
        ):
            await socket.send_json({"type": "resume", **said})
            assert await own(socket) == {"type": "reset", "epoch": epoch, "seq": KEPT + 1}
        await socket.send_json({"type": "resume", "epoch": epoch, "seq": 1})
        assert [(await own(socket))["seq"] for _ in range(KEPT)] == list(range(2, KEPT + 2))
        assert (await own(socket))["type"] == "resumed"


async def test_resuming_takes_a_session(serve: Serve) -> None:
    async with serve(ws.build) as client:
        socket, epoch = await connect(client)
        await socket.send_json({"type": "resume", "epoch": epoch, "seq": 0})
        assert (await own(socket))["code"] == "unauthenticated"


async def test_changes_that_may_have_been_missed_are_a_reset(
    serve: Serve, redis: Redis, redis_server: RedisServer, ada: str
) -> None:
    async with serve(ws.build) as client:
        await subscribed(client)
        socket, epoch = await connect(client, ada)
        await change(redis, ada=1)
        assert (await own(socket))["seq"] == 1
        redis_server.stop()
        await asyncio.sleep(0.2)
        redis_server.start()
        assert await own(socket) == {"type": "reset", "epoch": epoch, "seq": 2}
        await socket.send_json({"type": "resume", "epoch": epoch, "seq": 1})
        assert (await own(socket))["type"] == "reset"


async def test_unreadable_changes_are_a_reset_too(serve: Serve, redis: Redis, ada: str) -> None:
    async with serve(ws.build) as client:
        await subscribed(client)
        socket, _ = await connect(client, ada)
        for junk in (b"junk", b"[]", b'{"bets":[{}],"balances":{}}', b'{"bets":[]}'):
            await redis.publish(changes.CHANNEL, junk)
            assert (await own(socket))["type"] == "reset"
        await change(redis, ada=1)
        assert (await own(socket))["balance"] == 1


async def test_a_trader_who_was_forgotten_cannot_resume_from_old_numbers(
    serve: Serve, redis: Redis, ada: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traders, "_MOST_TRADERS", 0)
    async with serve(ws.build) as client:
        await subscribed(client)
        socket, epoch = await connect(client, ada)
        await change(redis, ada=1)
        last = (await own(socket))["seq"]
        await socket.close()
        await asyncio.sleep(0.05)
        again, _ = await connect(client, ada)
        await change(redis, ada=2)
        assert (await own(again))["seq"] > last
        await again.send_json({"type": "resume", "epoch": epoch, "seq": last})
        assert (await own(again))["type"] == "reset"


async def test_without_redis_a_new_token_is_not_refused_for_good(
    serve: Serve, redis: Redis, redis_server: RedisServer, ada: str
) -> None:
    async with serve(ws.build) as client:
        await subscribed(client)
        socket, _ = await connect(client)
        redis_server.stop()
        await socket.send_json({"type": "auth", "token": ada})
        assert (await own(socket))["code"] == "storage_unavailable"
        redis_server.start()


async def test_a_connection_that_brings_the_cookie_is_signed_in(
    serve: Serve, redis: Redis, ada: str
) -> None:
    async with serve(ws.build) as client:
        await subscribed(client)
        socket = await client.ws_connect("/ws", headers={"Cookie": f"{COOKIE}={ada}"})
        said = await own(socket)
        assert (said["type"], said["user_id"], said["seq"]) == ("authenticated", "ada", 0)
        await change(redis, ada=905)
        assert await own(socket) == {"type": "balance", "seq": 1, "balance": 905}


async def test_a_cookie_that_counts_no_more_makes_a_guest(serve: Serve, redis: Redis) -> None:
    async with serve(ws.build) as client:
        socket = await client.ws_connect("/ws", headers={"Cookie": f"{COOKIE}={'x' * 43}"})
        await until(socket, "hello")
        assert await quiet(socket)
        await socket.send_json({"type": "resume", "epoch": "", "seq": 0})
        assert (await own(socket))["code"] == "unauthenticated"
