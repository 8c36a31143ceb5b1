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
from tap_trading.base.redis import Redis, RedisError
from tap_trading.ledger.queries import Bet
from tap_trading.ledger.resolving import Changes
from tap_trading.services import ws
from tap_trading.services.auth import COOKIE
from tap_trading.settlement import changes
from tap_trading.settlement.history import KEPT, KEPT_S, Entered, History, Place
from tap_trading.stream import traders

OWN = ("bet", "balance", "authenticated", "resumed", "reset", "error")


CELL = "btc-usd:1764000000:5:8420000:8421000"
PLACED = 1_763_999_980_000


def bet(user_id: str, number: int = 1) -> tuple[str, Bet]:
    """A bet that was won, with its user."""
    fields = (f"bet_{number}", CELL, 100, "won", 10_582, 105, PLACED, PLACED + 26_100)
    return user_id, Bet(*fields)


async def change(redis: Redis, *bets: tuple[str, Bet], **balances: int) -> None:
    """What the resolver says of a transaction."""
    await History(redis).publish(Changes(list(bets), balances))


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
) -> tuple[ClientWebSocketResponse, Place]:
    """A connection, signed in with a token, and from where on its events come."""
    socket = await client.ws_connect("/ws")
    epoch, seq = str((await until(socket, "hello"))["epoch"]), 0
    if secret is not None:
        await socket.send_json({"type": "auth", "token": secret})
        said = await own(socket)
        assert (said["type"], said["epoch"]) == ("authenticated", epoch)
        seq = said["seq"]
    return socket, (epoch, seq)


async def resume(socket: ClientWebSocketResponse, place: Place) -> list[dict[str, Any]]:
    """All that is said to someone who resumes, to the end of it."""
    await socket.send_json({"type": "resume", "epoch": place[0], "seq": place[1]})
    said = [await own(socket)]
    while said[-1]["type"] not in ("resumed", "reset"):
        said.append(await own(socket))
    return said


@pytest.fixture
async def ada(redis: Redis) -> str:
    return await token(redis, "ada")


async def test_own_changes_are_numbered_and_others_are_not_heard(
    serve: Serve, redis: Redis, ada: str
) -> None:
    async with serve(ws.build) as client:
        await subscribed(client)
        socket, (epoch, _) = await connect(client)
        await socket.send_json({"type": "auth", "token": ada})
        said = await own(socket)
        begin = said.pop("seq")
        assert said == {"type": "authenticated", "user_id": "ada", "epoch": epoch}
        other, _ = await connect(client, await token(redis, "bob"))
        nobody, _ = await connect(client)
        await change(redis, bet("ada", 1), bet("bob", 2), bet("eve", 3), ada=905, eve=7)
        assert await own(socket) == {
            "type": "bet",
            "seq": begin + 1,
            "bet_id": "bet_1",
            "cell_id": CELL,
            "amount": 100,
            "status": "won",
            "reward_rate": "1.0582",
            "payout_amount": 105,
            "placed_at": "2025-11-24T15:59:40.000Z",
            "resolved_at": "2025-11-24T16:00:06.100Z",
        }
        assert await own(socket) == {"type": "balance", "seq": begin + 2, "balance": 905}
        assert (await own(other))["bet_id"] == "bet_2"
        assert await quiet(socket)
        assert await quiet(other)
        assert await quiet(nobody)


async def test_all_of_a_traders_clients_hear_the_same(serve: Serve, redis: Redis, ada: str) -> None:
    async with serve(ws.build) as client:
        await subscribed(client)
        connected = [await connect(client, ada) for _ in range(3)]
        [(_, begin)] = {place for _, place in connected}
        await change(redis, ada=1)
        assert [await own(socket) for socket, _ in connected] == [
            {"type": "balance", "seq": begin + 1, "balance": 1}
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
        socket, (epoch, begin) = await connect(client, ada)
        await change(redis, bet("ada", 1), ada=1)
        assert (await own(socket))["seq"] == begin + 1
        assert (await own(socket))["seq"] == begin + 2
        await socket.close()
        await change(redis, bet("ada", 2), ada=2)
        await change(redis, bet("ada", 3), ada=3)
        again, _ = await connect(client, ada)
        *missed, end = await resume(again, (epoch, begin + 2))
        assert [message["seq"] - begin for message in missed] == [3, 4, 5, 6]
        assert [message.get("bet_id") for message in missed] == ["bet_2", None, "bet_3", None]
        assert end == {"type": "resumed", "epoch": epoch, "seq": begin + 6}
        assert await resume(again, (epoch, begin + 6)) == [end]
        await change(redis, ada=4)
        assert (await own(again))["seq"] == begin + 7


async def test_who_has_missed_too_much_starts_anew(serve: Serve, redis: Redis, ada: str) -> None:
    async with serve(ws.build) as client:
        await subscribed(client)
        socket, (epoch, begin) = await connect(client, ada)
        await change(redis, *(bet("ada", number) for number in range(KEPT + 1)))
        for _ in range(KEPT + 1):
            await own(socket)
        last = begin + KEPT + 1
        for said in (
            {"epoch": epoch, "seq": begin},  # one more than is kept
            {"epoch": epoch, "seq": last + 1},  # never told
            {"epoch": epoch, "seq": 0},
            {"epoch": epoch, "seq": -1},
            {"epoch": epoch, "seq": 2**64},
            {"epoch": epoch, "seq": True},
            {"epoch": epoch, "seq": str(last)},
            {"epoch": "another epoch", "seq": last},
            {"epoch": [epoch], "seq": last},
            {},
        ):
            await socket.send_json({"type": "resume", **said})
            assert await own(socket) == {"type": "reset", "epoch": epoch, "seq": last}
        *missed, end = await resume(socket, (epoch, begin + 1))
        assert [message["seq"] for message in missed] == list(range(begin + 2, last + 1))
        assert end["type"] == "resumed"


async def test_resuming_takes_a_session(serve: Serve) -> None:
    async with serve(ws.build) as client:
        socket, (epoch, _) = await connect(client)
        await socket.send_json({"type": "resume", "epoch": epoch, "seq": 0})
        assert (await own(socket))["code"] == "unauthenticated"


async def test_changes_that_may_have_been_missed_are_a_reset(
    serve: Serve,
    redis: Redis,
    redis_server: RedisServer,
    ada: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # This Redis, unlike the machine's, forgets the sessions too.
    monkeypatch.setattr(traders, "_CHECK_EVERY_S", 3600)
    async with serve(ws.build) as client:
        await subscribed(client)
        socket, (epoch, begin) = await connect(client, ada)
        await change(redis, ada=1)
        assert (await own(socket))["seq"] == begin + 1
        redis_server.stop()
        await asyncio.sleep(0.2)
        redis_server.start()
        reset = await own(socket)
        assert reset["type"] == "reset"
        assert reset["epoch"] != epoch
        assert reset["seq"] > begin + 1
        assert await resume(socket, (epoch, begin + 1)) == [reset]
        await change(redis, ada=2)
        assert await own(socket) == {"type": "balance", "seq": reset["seq"] + 1, "balance": 2}
        _, place = await connect(client)
        assert place == (reset["epoch"], 0)  # what it greets with


async def test_unreadable_changes_are_a_reset_too(serve: Serve, redis: Redis, ada: str) -> None:
    async with serve(ws.build) as client:
        await subscribed(client)
        socket, (named, seq) = await connect(client, ada)
        epoch = named.encode()
        for junk in (
            *(b"junk", b"", b"\xff", b"%b\nada" % epoch, b"%b\nada x 1" % epoch),
            *(b"%b\nada %d %b" % (epoch, seq + 1, event) for event in (b"", b"{", b"[1]", b"{}")),
        ):
            await redis.publish(changes.CHANNEL, junk)
            assert (await own(socket))["type"] == "reset"
        await change(redis, ada=1)
        assert (await own(socket))["balance"] == 1


async def test_events_that_were_lost_are_a_reset(serve: Serve, redis: Redis, ada: str) -> None:
    """Redis may drop any key when memory is short."""
    async with serve(ws.build) as client:
        await subscribed(client)
        socket, (epoch, begin) = await connect(client, ada)
        await change(redis, ada=1)
        assert (await own(socket))["seq"] == begin + 1
        await redis.delete("trader:ada")
        await change(redis, ada=2)  # nobody has this
        reset = await own(socket)
        assert (reset["type"], reset["epoch"]) == ("reset", epoch)
        assert reset["seq"] > begin + 2  # no number is given twice
        await change(redis, ada=3)
        assert await own(socket) == {"type": "balance", "seq": reset["seq"] + 1, "balance": 3}
        assert [said["type"] for said in await resume(socket, (epoch, begin + 1))] == ["reset"]


async def test_events_that_were_lost_and_begun_anew_by_another_client_are_a_reset(
    serve: Serve, redis: Redis, ada: str
) -> None:
    async with serve(ws.build) as client:
        await subscribed(client)
        socket, _ = await connect(client, ada)
        await redis.delete("trader:ada")
        other, (_, begin) = await connect(client, ada)
        await change(redis, ada=1)
        assert await own(other) == {"type": "balance", "seq": begin + 1, "balance": 1}
        reset = await own(socket)
        assert (reset["type"], reset["seq"]) == ("reset", begin + 1)
        await change(redis, ada=2)
        assert (await own(socket)) == (await own(other))


async def test_a_connected_traders_events_are_kept_and_a_loss_is_noticed(
    serve: Serve, redis: Redis, ada: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traders, "_KEEP_EVERY_S", 0.05)
    async with serve(ws.build) as client:
        await subscribed(client)
        socket, _ = await connect(client, ada)
        await redis.expire("trader:ada", 5)
        async with asyncio.timeout(5):
            while await redis.ttl("trader:ada") <= 5:
                await asyncio.sleep(0.01)
        assert await redis.ttl("trader:ada") <= KEPT_S
        await redis.delete("trader:ada")
        assert (await own(socket))["type"] == "reset"
        await socket.close()
        await redis.expire("trader:ada", 5)
        await asyncio.sleep(0.2)
        assert await redis.ttl("trader:ada") <= 5


@pytest.mark.parametrize("renewed", [False, True])
async def test_another_epoch_is_a_reset_for_all(
    serve: Serve, redis: Redis, ada: str, renewed: bool
) -> None:
    async with serve(ws.build) as client:
        await subscribed(client)
        sockets = [
            (await connect(client, secret))[0] for secret in (ada, ada, await token(redis, "bob"))
        ]
        if renewed:
            await History(redis).renew()
        else:
            await redis.delete("traders:epoch")  # whoever comes next begins another
            await change(redis, eve=1)
        epoch = await History(redis).epoch()
        for socket in sockets:
            reset = await own(socket)
            assert (reset["type"], reset["epoch"]) == ("reset", epoch)
        await change(redis, ada=2)
        assert [(await own(socket))["balance"] for socket in sockets[:2]] == [2, 2]
        assert await quiet(sockets[2])
        assert (await connect(client, ada))[1][0] == epoch


async def test_what_comes_while_a_client_resumes_comes_once_and_behind(
    serve: Serve, redis: Redis, ada: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis is asked, and before its answer is heard more is told."""
    enter, asked = History.enter, 0

    async def late(self: History, user_id: str, place: tuple[object, object] = ("", 0)) -> Entered:
        nonlocal asked
        asked += 1
        if asked % 2:
            found = await enter(self, user_id, place)
            await change(redis, ada=asked, bob=1)
            await asyncio.sleep(0.2)
            return found
        await change(redis, ada=asked, bob=1)
        await asyncio.sleep(0.2)
        return await enter(self, user_id, place)

    async with serve(ws.build) as client:
        await subscribed(client)
        socket, (epoch, begin) = await connect(client, ada)
        await socket.close()
        for number in range(5):
            await change(redis, ada=-number)
        monkeypatch.setattr(History, "enter", late)
        again, _ = await connect(client, ada)  # the first
        heard = await resume(again, (epoch, begin))  # the second
        assert heard[-1] == {"type": "resumed", "epoch": epoch, "seq": begin + 7}
        assert [each["seq"] - begin for each in heard[:-1]] == [1, 2, 3, 4, 5, 6, 7]
        assert await resume(again, (epoch, begin + 7)) == [heard[-1]]  # the third
        assert (await own(again)) == {"type": "balance", "seq": begin + 8, "balance": 3}
        assert await quiet(again)


async def test_without_redis_nobody_can_resume_yet_and_nothing_is_lost(
    serve: Serve, redis: Redis, ada: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter = History.enter

    async def fail(*_: object) -> Entered:
        await change(redis, ada=1)
        await asyncio.sleep(0.1)
        raise RedisError("no answer")

    async with serve(ws.build) as client:
        await subscribed(client)
        socket, (epoch, begin) = await connect(client, ada)
        monkeypatch.setattr(History, "enter", fail)
        await socket.send_json({"type": "resume", "epoch": epoch, "seq": begin})
        assert (await own(socket))["code"] == "storage_unavailable"
        assert (await own(socket)) == {"type": "balance", "seq": begin + 1, "balance": 1}
        other = await client.ws_connect("/ws")
        await other.send_json({"type": "auth", "token": ada})
        assert (await own(other))["code"] == "storage_unavailable"
        monkeypatch.setattr(History, "enter", enter)
        assert (await own(socket))["seq"] == begin + 2
        assert await quiet(other)
        assert [said["seq"] - begin for said in await resume(socket, (epoch, begin))] == [1, 2, 2]


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
        assert (said["type"], said["user_id"]) == ("authenticated", "ada")
        await change(redis, ada=905)
        assert await own(socket) == {"type": "balance", "seq": said["seq"] + 1, "balance": 905}


async def test_a_cookie_that_counts_no_more_makes_a_guest(serve: Serve, redis: Redis) -> None:
    async with serve(ws.build) as client:
        socket = await client.ws_connect("/ws", headers={"Cookie": f"{COOKIE}={'x' * 43}"})
        await until(socket, "hello")
        assert await quiet(socket)
        await socket.send_json({"type": "resume", "epoch": "", "seq": 0})
        assert (await own(socket))["code"] == "unauthenticated"
