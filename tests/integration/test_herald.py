"""The resolver's last word on each change: told to the traders, or known as not told."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import apsw
import pytest
from tests.conftest import RedisServer
from tests.integration.conftest import Serve
from tests.integration.test_processes import end, free_port, healthy, start
from tests.integration.test_side_by_side import connect_anyhow
from tests.integration.test_traders import connect, own, quiet, resume, token
from tests.integration.test_ws import subscribed

from market_days import BEGIN, FAR, NEAR, START, Tape, Traders, resolving
from tap_trading.base import background
from tap_trading.base.redis import Redis, RedisError
from tap_trading.game.cell import Cell
from tap_trading.ledger.batcher import StorageUnavailableError
from tap_trading.ledger.resolving import Changes
from tap_trading.services import resolver as resolver_service
from tap_trading.services import ws
from tap_trading.settlement import herald as heralds
from tap_trading.settlement.herald import Herald
from tap_trading.settlement.history import History


class Scribe(History):
    """Writes down what it is asked for; fails when told to."""

    def __init__(self) -> None:
        self.done: list[object] = []
        self.failing = False
        self.held = asyncio.Event()
        self.held.set()

    async def _note(self, what: object) -> None:
        await self.held.wait()
        if self.failing:
            raise RedisError("no answer")
        self.done.append(what)

    async def publish(self, changed: Changes) -> None:
        await self._note(changed.balances["ada"])

    async def renew(self) -> None:
        await self._note("renew")

    async def lead(self, token: int) -> None:
        await self._note(("lead", token))

    async def all_told(self, token: int) -> None:
        await self._note(("all told", token))


@pytest.fixture
async def scribe() -> Scribe:
    return Scribe()


@pytest.fixture
async def herald(scribe: Scribe, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Herald]:
    monkeypatch.setattr(heralds, "_PAUSE_S", 0.05)
    herald = Herald(scribe)
    publishing = asyncio.create_task(herald.publish())
    yield herald
    await background.end(publishing)


def balance(cents: int) -> Changes:
    return Changes([], {"ada": cents})


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_what_is_told_is_published_in_order_and_then_that_is_all(
    herald: Herald, scribe: Scribe
) -> None:
    herald.lead(4)
    for cents in range(5):
        herald.tell(balance(cents))
    await herald.flush(4)
    assert scribe.done == [("lead", 4), 0, 1, 2, 3, 4, ("all told", 4)]


async def test_after_a_failure_all_load_everything_anew(herald: Herald, scribe: Scribe) -> None:
    scribe.failing = True
    herald.tell(balance(1))
    herald.tell(balance(2))
    await asyncio.sleep(0.2)
    herald.tell(balance(3))
    scribe.failing = False
    await until(lambda: scribe.done)
    herald.tell(balance(4))
    await herald.flush(1)
    # The second and third are in the books, from which everything is loaded.
    assert scribe.done == ["renew", 4, ("all told", 1)]


async def test_after_too_many_changes_all_load_everything_anew(
    herald: Herald, scribe: Scribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heralds, "_MOST_WAITING", 3)
    scribe.held.clear()
    herald.tell(balance(0))
    await asyncio.sleep(0.01)  # under way
    for cents in range(1, 5):
        herald.tell(balance(cents))
    scribe.held.set()
    await until(lambda: len(scribe.done) == 2)
    herald.tell(balance(5))
    await herald.flush(1)
    assert scribe.done == [0, "renew", 5, ("all told", 1)]


async def test_what_cannot_be_told_in_time_is_not_called_told(
    herald: Herald, scribe: Scribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heralds, "_FLUSH_S", 0.2)
    scribe.failing = True
    herald.tell(balance(1))
    await herald.flush(1)
    scribe.failing = False
    await until(lambda: scribe.done)
    assert scribe.done == ["renew"]


async def test_a_resolver_that_ends_has_its_last_transaction_told_before_another_begins(
    database: Path, prices: Path, tape: Tape, traders: Traders
) -> None:
    """Also one whose result nobody has waited for."""
    bet = traders.bet(NEAR, BEGIN)
    tape.stay(BEGIN + 1_000)
    said: list[object] = []
    async with (
        resolving(database, prices, holder="one") as one,
        resolving(database, prices, holder="two") as two,
    ):
        one.on_lead = lambda token: said.append(("leads", token))
        one.on_changes = lambda changed: said.append(changed.bets[0][1].bet_id)

        async def released(token: int) -> None:
            said.append(("released", token))
            assert not await two.step()

        one.on_release = released
        two.on_lead = lambda token: said.append(("leads", token))
        await one.step()
        working = asyncio.create_task(one.step())
        while one._transaction is None:
            await asyncio.sleep(0)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        assert bet not in said
        await one.release()
        assert await two.step()
    assert said == [("leads", 1), bet, ("released", 1), ("leads", 2)]


async def test_a_commit_that_failed_may_have_been_one(
    database: Path, prices: Path, tape: Tape, traders: Traders, monkeypatch: pytest.MonkeyPatch
) -> None:
    traders.bet(NEAR, BEGIN)
    tape.stay(BEGIN + 1_000)
    said: list[str] = []
    async with resolving(database, prices) as resolver:
        resolver.on_changes = lambda _: said.append("changes")
        resolver.on_missed = lambda: said.append("missed")
        await resolver.step()
        handle = resolver._books.handle

        async def fail(item: Callable[[apsw.Connection], Changes]) -> Changes:
            await handle(item)
            raise StorageUnavailableError("the disk did not answer")

        monkeypatch.setattr(resolver._books, "handle", fail)
        for _ in range(2):
            with pytest.raises(StorageUnavailableError):
                await resolver._write(lambda _connection, _now: Changes())
        monkeypatch.setattr(resolver._books, "handle", handle)
        assert said == []
        while await resolver.step():
            pass
        assert said == ["missed", "changes"]
        monkeypatch.setattr(resolver._books, "handle", fail)
        with pytest.raises(StorageUnavailableError):
            await resolver._write(lambda _connection, _now: Changes())
        await resolver.release()
        assert said == ["missed", "changes", "missed"]


async def settled(socket: object, bets: list[str]) -> set[tuple[str, str]]:
    """What is told of these bets, to the last of them."""
    return {
        (said["bet_id"], said["status"])
        for said in [await own(socket) for _ in bets]  # type: ignore[arg-type] # JSON
    }


async def test_resolvers_that_end_in_order_reset_nobody(
    serve: Serve, redis: Redis, tape: Tape, traders: Traders
) -> None:
    user = traders.users[0]
    tape.stay(BEGIN + 1_000)
    async with serve(ws.build) as client:
        await subscribed(client)
        async with serve(resolver_service.build):
            await until_leading(redis)
            socket, place = await connect(client, await token(redis, user))
            first = traders.bet(NEAR, BEGIN)
            assert await settled(socket, [first]) == {(first, "confirmed")}
        second = traders.bet(FAR, BEGIN)
        async with serve(resolver_service.build):
            assert await settled(socket, [second]) == {(second, "confirmed")}
        tape.stay((START + 6) * 1000)
        async with serve(resolver_service.build):
            said = [await own(socket) for _ in range(3)]
        assert {each.get("status") for each in said} == {"won", "lost", None}
        assert await quiet(socket)
        heard = await resume(socket, place)
        assert [each["type"] for each in heard] == [
            *("bet", "bet", "bet", "bet", "balance", "resumed"),
        ]


async def until_leading(redis: Redis) -> None:
    """A resolver has begun, and with it an epoch perhaps."""
    async with asyncio.timeout(10):
        while not await redis.exists("traders:epoch"):
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)


@asynccontextmanager
async def process(settings: dict[str, str]) -> AsyncIterator[Callable[[signal.Signals], None]]:
    """A resolver, which the block ends by a signal."""
    port = free_port()
    resolver = start("resolver", {**settings, "TAP_RESOLVER_LISTEN": f"127.0.0.1:{port}"})
    try:
        await healthy(port)
        yield resolver.send_signal
    finally:
        if resolver.poll() is None:
            resolver.send_signal(signal.SIGTERM)
        await asyncio.to_thread(end, resolver)


@pytest.mark.parametrize(
    ("how", "begins"), [(signal.SIGTERM, "bet"), (signal.SIGKILL, "reset")], ids=["ended", "killed"]
)
async def test_after_a_resolver_was_killed_all_load_everything_anew(
    serve: Serve,
    redis: Redis,
    environment: dict[str, str],
    tape: Tape,
    traders: Traders,
    how: signal.Signals,
    begins: str,
) -> None:
    tape.stay(BEGIN + 1_000)
    async with serve(ws.build) as client:
        await subscribed(client)
        async with process(environment) as send:
            await until_leading(redis)
            socket, (epoch, _) = await connect(client, await token(redis, traders.users[0]))
            first = traders.bet(NEAR, BEGIN)
            assert (await own(socket))["bet_id"] == first
            send(how)
        second = traders.bet(FAR, BEGIN)
        async with process(environment):
            said = await own(socket)
            assert said["type"] == begins
            if begins == "reset":
                assert said["epoch"] != epoch
                said = await own(socket)
            assert (said["bet_id"], said["status"]) == (second, "confirmed")


async def test_a_herald_that_was_without_redis_resets_all(
    serve: Serve, redis: Redis, redis_server: RedisServer, tape: Tape, traders: Traders
) -> None:
    """The bets are confirmed meanwhile."""
    tape.stay(BEGIN + 1_000)
    async with serve(ws.build) as client, serve(resolver_service.build):
        await subscribed(client)
        await until_leading(redis)
        socket, (epoch, _) = await connect(client, await token(redis, traders.users[0]))
        redis_server.stop()
        missed = traders.bet(NEAR, BEGIN)
        await until(lambda: traders.row(missed)["status"] == "confirmed")
        redis_server.start()
        said = await own(socket)
        assert said["type"] == "reset"
        assert said["epoch"] != epoch
        # Sessions are gone with this Redis.
        again, _ = await connect_anyhow(client, await token(redis, traders.users[0]))
        # What is confirmed before the herald's own reset is loaded with it; later it is told.
        second = traders.bet(FAR, BEGIN)
        while (await own(again))["type"] == "reset":
            if traders.row(second)["status"] == "confirmed":
                break
        third = traders.bet(Cell(START + 5, 5, NEAR.low, NEAR.high), BEGIN)
        while (said := await own(again)).get("bet_id") != third:
            pass
        assert said["status"] == "confirmed"
