"""Two ws processes side by side, as during a deploy: a trader may go from one to the other."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import ClientWebSocketResponse
from aiohttp.test_utils import TestClient
from tests.integration.conftest import Serve
from tests.integration.test_traders import ada, bet, change, connect, own, quiet, resume, token
from tests.integration.test_ws import subscribed

from tap_trading.base.redis import Redis
from tap_trading.services import ws
from tap_trading.settlement.history import KEPT, History, Place

__all__ = ["ada"]


@asynccontextmanager
async def two(serve: Serve) -> AsyncIterator[tuple[TestClient, TestClient]]:
    async with serve(ws.build) as blue, serve(ws.build) as green:
        await subscribed(blue)
        await subscribed(green)
        yield blue, green


async def test_what_was_missed_is_delivered_by_the_other_process(
    serve: Serve, redis: Redis, ada: str
) -> None:
    async with two(serve) as (blue, green):
        socket, (epoch, begin) = await connect(blue, ada)
        await change(redis, bet("ada", 1), ada=1)
        heard = [await own(socket) for _ in range(2)]
        await socket.close()
        await change(redis, bet("ada", 2), ada=2)
        again, place = await connect(green, ada)
        assert place == (epoch, begin + 4)
        *missed, end = await resume(again, (epoch, begin + 2))
        heard += missed
        assert end == {"type": "resumed", "epoch": epoch, "seq": begin + 4}
        await change(redis, bet("ada", 3))
        heard.append(await own(again))
        assert [each["seq"] - begin for each in heard] == [1, 2, 3, 4, 5]
        assert [each.get("bet_id", each.get("balance")) for each in heard] == [
            *("bet_1", 1, "bet_2", 2, "bet_3"),
        ]


async def test_a_process_that_starts_later_knows_it_all(
    serve: Serve, redis: Redis, ada: str
) -> None:
    async with serve(ws.build) as blue:
        await subscribed(blue)
        socket, place = await connect(blue, ada)
        await change(redis, ada=1)
        first = await own(socket)
        await socket.close()
    await change(redis, ada=2)  # nobody listens
    async with serve(ws.build) as green:
        again, _ = await connect(green, ada)
        *missed, end = await resume(again, place)
        assert missed[0] == first
        assert [each["balance"] for each in missed] == [1, 2]
        assert end["type"] == "resumed"


async def test_on_both_a_trader_hears_the_same(serve: Serve, redis: Redis, ada: str) -> None:
    async with two(serve) as both:
        sockets = [(await connect(client, ada))[0] for client in both]
        for number in range(20):
            await change(redis, bet("ada", number), ada=number)
        heard = [[await own(socket) for _ in range(40)] for socket in sockets]
        assert heard[0] == heard[1]
        await redis.delete("traders:epoch")
        await change(redis, ada=1)
        resets = [await own(socket) for socket in sockets]
        assert resets[0] == resets[1]
        assert resets[0]["type"] == "reset"


@pytest.mark.parametrize("key", ["trader:ada", "traders:epoch"])
async def test_what_redis_has_dropped_is_a_reset_on_the_other(
    serve: Serve, redis: Redis, ada: str, key: str
) -> None:
    async with two(serve) as (blue, green):
        socket, place = await connect(blue, ada)
        await socket.close()
        await change(redis, ada=1)
        await redis.delete(key)
        await change(redis, ada=2)
        again, (epoch, seq) = await connect_anyhow(green, ada)
        assert await resume(again, place) == [{"type": "reset", "epoch": epoch, "seq": seq}]
        await change(redis, ada=3)
        assert await own(again) == {"type": "balance", "seq": seq + 1, "balance": 3}


async def connect_anyhow(client: TestClient, secret: str) -> tuple[ClientWebSocketResponse, Place]:
    """The epoch may end between the greeting and the signing in."""
    socket = await client.ws_connect("/ws")
    await socket.send_json({"type": "auth", "token": secret})
    said = await own(socket)
    return socket, (said["epoch"], said["seq"])


@dataclass
class Tab:
    """A trader's page: goes on from where it was, on whatever process it finds."""

    secret: str
    processes: tuple[TestClient, TestClient]
    chance: random.Random
    place: Place | None = None
    heard: list[int] = field(default_factory=list)
    connections: int = 0

    async def run(self, last: int) -> None:
        """Come and go until the `last` balance has been heard of."""
        while not self.heard or self.heard[-1] != last:
            socket = await self.chance.choice(self.processes).ws_connect("/ws")
            self.connections += 1
            async with asyncio.timeout(20):
                await self._listen(socket, last)
            await socket.close()
            await asyncio.sleep(self.chance.choice((0, 0, 0.01, 0.1)))

    async def _listen(self, socket: ClientWebSocketResponse, last: int) -> None:
        await socket.send_json({"type": "auth", "token": self.secret})
        if self.place and self.chance.random() < 0.5:  # not waiting for the answer
            await socket.send_json({"type": "resume", "epoch": self.place[0], "seq": self.place[1]})
            sent = True
        else:
            sent = False
        said = await own(socket)
        assert said["type"] == "authenticated"
        if self.place is None:
            self.place = said["epoch"], said["seq"]
        elif not sent:
            await asyncio.sleep(self.chance.choice((0, 0.05)))
            await socket.send_json({"type": "resume", "epoch": self.place[0], "seq": self.place[1]})
        for _ in range(self.chance.randrange(60)):
            self._take(await own(socket))
            if self.heard and self.heard[-1] == last:
                return

    def _take(self, said: dict[str, object]) -> None:
        assert self.place
        epoch, seq = self.place
        assert said["type"] != "reset"
        if said["type"] == "resumed":
            assert (said["epoch"], said["seq"]) == (epoch, seq)  # nothing is behind it
        else:
            assert said["seq"] == seq + 1
            self.place = epoch, seq + 1
            self.heard.append(int(str(said["balance"])))


@pytest.mark.parametrize("campaign", range(3))
async def test_however_often_a_client_comes_and_goes_it_hears_each_event_once_and_in_order(
    serve: Serve, redis: Redis, campaign: int
) -> None:
    chance, count = random.Random(campaign), 600
    async with two(serve) as processes:
        tabs = [
            Tab(await token(redis, user), processes, chance)
            for user in ("ada", "ada", "ada", "bob", "bob")
        ]
        history = History(redis)
        begin = {user: await history.enter(user) for user in ("ada", "bob")}
        for tab, user in zip(tabs, ("ada", "ada", "ada", "bob", "bob"), strict=True):
            tab.place = begin[user].epoch, begin[user].seq

        async def trade() -> None:
            for number in range(1, count + 1):
                # Who is further behind than what is kept would be reset, and rightly so.
                while number - min(tab.heard[-1] if tab.heard else 0 for tab in tabs) > KEPT - 50:
                    await asyncio.sleep(0.001)
                await change(redis, ada=number, bob=number)
                if chance.random() < 0.1:
                    await asyncio.sleep(chance.choice((0.001, 0.01, 0.03)))

        await asyncio.gather(trade(), *(tab.run(count) for tab in tabs))
        for tab in tabs:
            assert tab.heard == list(range(1, count + 1))
            assert tab.connections > 5


async def test_a_flow_of_events_does_not_get_into_the_way_of_resuming(
    serve: Serve, redis: Redis, ada: str
) -> None:
    async with two(serve) as (blue, green):
        socket, place = await connect(blue, ada)
        await socket.close()

        async def trade() -> None:
            for number in range(1, 301):
                await change(redis, ada=number)
                await asyncio.sleep(0.002)

        trading = asyncio.create_task(trade())
        await asyncio.sleep(0.05)
        heard: list[int] = []
        for client in (green, blue, green):
            again, _ = await connect(client, ada)
            await asyncio.sleep(0.02)
            *missed, end = await resume(again, place)
            missed += [await own(again) for _ in range(10)]  # live
            assert [said["seq"] for said in missed] == [
                place[1] + 1 + number for number in range(len(missed))
            ]
            assert end == {"type": "resumed", "epoch": place[0], "seq": missed[-11]["seq"]}
            heard += [said["balance"] for said in missed]
            place = place[0], missed[-1]["seq"]
        while heard[-1] < 300:
            heard.append((await own(again))["balance"])
        await trading
        assert heard == list(range(1, 301))
        assert await quiet(again)
