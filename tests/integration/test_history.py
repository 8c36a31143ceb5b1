"""What traders were told, as Redis keeps it: numbered without a gap, for one epoch."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.conftest import RedisServer
from tests.integration.test_traders import bet

from tap_trading.base.redis import Redis, RedisError
from tap_trading.ledger.resolving import Changes
from tap_trading.settlement import changes
from tap_trading.settlement.history import KEPT, KEPT_S, History

Messages = asyncio.Queue[bytes]


@pytest.fixture
def history(redis: Redis) -> History:
    return History(redis)


@pytest.fixture
async def heard(redis: Redis, history: History) -> AsyncIterator[Messages]:
    """What is published from now on, in an epoch that has begun."""
    await history.epoch()
    messages: Messages = asyncio.Queue()

    async def listen() -> None:
        async for message in pubsub.listen():
            if message["type"] == "message":
                messages.put_nowait(message["data"])

    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(changes.CHANNEL)
        listening = asyncio.create_task(listen())
        while not (await redis.pubsub_numsub(changes.CHANNEL))[0][1]:
            await asyncio.sleep(0.01)
        yield messages
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def message(heard: Messages) -> tuple[str, list[changes.Told]]:
    async with asyncio.timeout(5):
        epoch, events = changes.decode(await heard.get())
    return epoch, list(events)


async def test_events_of_those_who_are_here_are_numbered_kept_and_told(
    history: History, heard: Messages, redis: Redis
) -> None:
    ada = await history.enter("ada")
    assert ada.missed is None
    await history.publish(Changes([bet("ada", 1), bet("eve", 2), bet("ada", 3)], {"ada": 9}))
    epoch, events = await message(heard)
    assert epoch == ada.epoch
    assert [(told.user_id, told.seq) for told in events] == [
        *(("ada", ada.seq + 1), ("eve", 0), ("ada", ada.seq + 2), ("ada", ada.seq + 3)),
    ]
    fields = [changes.fields(told.event) for told in events if told.event]
    assert [kind for kind, _ in fields] == ["bet", "bet", "balance"]
    assert (fields[0][1]["bet_id"], fields[2][1]) == ("bet_1", {"balance": 9})
    again = await history.enter("ada", (ada.epoch, ada.seq))
    assert again.missed == [told.event.encode() for told in events if told.event]
    assert (again.epoch, again.seq) == (ada.epoch, ada.seq + 3)
    assert not await redis.exists("trader:eve")


async def test_of_what_was_missed_all_is_told_or_nothing(history: History) -> None:
    begin = (await history.enter("ada")).seq
    for balance in range(KEPT + 5):
        await history.publish(Changes([], {"ada": balance}))
    epoch, last, _ = await history.enter("ada")
    assert last == begin + KEPT + 5

    async def missed(seq: object, of: object = epoch) -> list[int] | None:
        found = (await history.enter("ada", (of, seq))).missed
        return None if found is None else [int(event) for event in found]

    assert await missed(begin + 5) == list(range(5, KEPT + 5))
    assert await missed(last - 1) == [KEPT + 4]
    assert await missed(last) == []
    for seq in (begin + 4, begin, 0, -1, last + 1, 2**53, 2**70, True, 1.0, str(last), None):
        assert await missed(seq) is None, seq
    for of in ("", "0" * 16, epoch + "\n", None, 7, [epoch]):
        assert await missed(last, of) is None, of


async def test_a_stream_that_is_made_anew_gives_no_number_twice(
    history: History, redis: Redis
) -> None:
    last, epoch = 0, await history.epoch()
    for _ in range(20):
        entered = await history.enter("ada", (epoch, last))
        assert entered.missed is None
        assert entered.seq > last
        await history.publish(Changes([], dict.fromkeys(["ada"], 1)))
        last = (await history.enter("ada")).seq
        assert last == entered.seq + 1
        await redis.delete("trader:ada")


async def test_events_are_kept_for_a_while_after_a_trader_was_here(
    history: History, redis: Redis
) -> None:
    assert await history.keep(["ada"]) == ["ada"]
    await history.enter("ada")
    assert 0 < await redis.ttl("trader:ada") <= KEPT_S
    await redis.expire("trader:ada", 5)
    await history.publish(Changes([], {"ada": 1}))
    assert await redis.ttl("trader:ada") <= 5
    many = [f"user {number}" for number in range(250)]
    assert await history.keep(["ada", *many]) == many
    assert await redis.ttl("trader:ada") > 5


async def test_many_enter_at_once(history: History) -> None:
    users = [f"user{number}" for number in range(350)]
    found = await asyncio.gather(*map(history.enter, users))
    assert len({entered.epoch for entered in found}) == 1
    await history.publish(Changes([], dict.fromkeys(users, 5)))
    places = [(entered.epoch, entered.seq) for entered in found]
    again = await asyncio.gather(*map(history.enter, users, places))
    assert [entered.missed for entered in again] == [[b"5"]] * 350


async def test_an_epoch_that_is_gone_is_followed_by_another(
    history: History, heard: Messages, redis: Redis
) -> None:
    before = await history.enter("ada")
    assert await history.epoch() == before.epoch
    await redis.delete("traders:epoch")
    after = await history.enter("ada", (before.epoch, before.seq))
    assert after.epoch != before.epoch
    assert after.missed is None
    assert await message(heard) == (after.epoch, [])
    await history.renew()
    third, nothing = await message(heard)
    assert (third, nothing) == (await history.epoch(), [])
    await redis.set("traders:epoch", "nonsense")
    await history.publish(Changes([], {"ada": 1}))
    fourth, _ = await message(heard)
    assert await message(heard) == (fourth, [changes.Told("ada", after.seq + 1, "1")])
    assert len({before.epoch, after.epoch, third, fourth}) == 4


async def test_an_epoch_ends_with_the_run_of_redis_that_it_began_in(
    history: History, redis: Redis, redis_server: RedisServer
) -> None:
    """As if loaded from a file that lacks the last events."""
    before = await history.enter("ada")
    stored, stream = await redis.get("traders:epoch"), await redis.dump("trader:ada")
    await history.publish(Changes([], {"ada": 1}))
    redis_server.stop()
    redis_server.start()
    await redis.set("traders:epoch", stored)
    await redis.restore("trader:ada", 0, stream)
    after = await history.enter("ada", (before.epoch, before.seq))
    assert after.seq == before.seq
    assert after.epoch != before.epoch
    assert after.missed is None


async def test_a_resolver_that_follows_one_that_told_everything_begins_no_epoch(
    history: History, redis: Redis
) -> None:
    epochs = [await history.epoch()]

    async def lead(token: int) -> bool:
        """Whether the epoch stays."""
        await history.lead(token)
        epochs.append(await history.epoch())
        return epochs[-1] == epochs[-2]

    assert not await lead(1)
    await history.all_told(1)
    assert await lead(2)
    assert not await lead(3)  # the second one was killed
    await history.all_told(3)
    assert not await lead(5)  # there was a fourth
    assert not await lead(4)
    await history.all_told(4)
    await redis.delete("resolver:all_told")
    assert not await lead(5)


async def test_without_redis_all_raise(history: History, redis_server: RedisServer) -> None:
    redis_server.stop()
    for work in (
        *(history.epoch(), history.renew(), history.lead(1), history.all_told(1)),
        *(history.publish(Changes()), history.enter("ada"), history.keep(["ada"])),
    ):
        with pytest.raises((RedisError, OSError)):
            await work
    redis_server.start()
    assert (await history.enter("ada")).missed is None


@pytest.mark.parametrize("event", ["", "{", "{}", "[1]", "null", '"x"', '["a","b"]'])
def test_what_is_no_event_is_not_shown(event: str) -> None:
    with pytest.raises(ValueError, match="no event"):
        changes.fields(event)
