"""The API under the load of a crowd, and what must be true of its database at any moment."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.faults.crowd import Ask, Crowd
from tests.faults.site import Api, audited, live_price, offered_cells, sign_in

from tap_trading.base.db import open_reader
from tap_trading.base.redis import Redis

_CONNECTIONS = 24
_RICH = 10**9  # cents
_POOR = 20_000


@dataclass
class Site:
    """The API under load."""

    api: Api
    crowd: Crowd
    database: Path
    opening: dict[str, int]  # balances by user, in cents
    restarts: list[float] = field(default_factory=list)  # s until the first answer

    async def restart(self) -> None:
        """Start it; returns with its first answer."""
        began = time.monotonic()
        self.api.start()
        try:
            async with asyncio.timeout(30):
                await self.crowd.answered()
        except TimeoutError:
            pytest.fail(f"no answer after a restart:\n{self.api.log()[-3000:]}")
        self.restarts.append(time.monotonic() - began)


@asynccontextmanager
async def under_load(
    api: Api, database: Path, redis: Redis, chance: random.Random
) -> AsyncIterator[Site]:
    users = await sign_in(database, redis, [*([_RICH] * 9), _POOR])
    crowd = Crowd(api.port, users[:-1], users[-1], offered_cells(), chance)
    opening = {user.user_id: _RICH for user in users[:-1]} | {users[-1].user_id: _POOR}
    async with live_price(redis):
        crowd.start(_CONNECTIONS)
        try:
            yield Site(api, crowd, database, opening)
        finally:
            await crowd.stop()
            api.close()


@dataclass(frozen=True)
class Kept:
    """What the database has, at one moment."""

    bets: dict[str, tuple[str, str, str, int]]  # by id: user, key, cell, stake
    balances: dict[str, int]
    wrong_books: tuple[str, ...]


def read(database: Path) -> Kept:
    connection = open_reader(database)
    connection.execute("BEGIN")
    bets = {
        row[0]: row[1:]
        for row in connection.execute(
            "SELECT id, user_id, idempotency_key, cell_id, amount FROM bets"
            " WHERE status = 'pending'"
        )
    }
    balances = dict(connection.execute("SELECT id, balance FROM users WHERE id <> 'house'"))
    connection.close()
    return Kept(bets, balances, audited(database))


async def faults(site: Site) -> list[str]:
    """What the database does not keep of what the crowd was told by now."""
    told = [*site.crowd.acknowledged()]
    kept = await asyncio.to_thread(read, site.database)
    found = [f"wrong books: {sentence}" for sentence in kept.wrong_books]
    for ask, answer in told:
        bet = kept.bets.get(str(answer["bet_id"]))
        asked = (ask.user.user_id, ask.key, ask.cell_id, ask.amount)
        if bet != asked or (answer["cell_id"], answer["amount"]) != asked[2:]:
            found.append(f"asked for {asked}, acknowledged as {answer}, and there is {bet}")
    keys = {(user_id, key) for user_id, key, *_ in kept.bets.values()}
    if len(keys) != len(kept.bets):
        found.append("two bets for one key")
    return found + wrong_answers(site.crowd.asks) + wrong_balances(site.opening, kept)


def wrong_answers(asks: list[Ask]) -> list[str]:
    """Answers that differ from each other or from what they had to be."""
    found = []
    for ask in asks:
        statuses = {answer.status for answer in ask.answers}
        if len(ask.answers) > 1 or not statuses <= ask.expected:
            found.append(f"{ask.key} was answered {ask.answers}, expected {set(ask.expected)}")
    return found


def wrong_balances(opening: dict[str, int], kept: Kept) -> list[str]:
    """Users who do not have what their stakes have left them."""
    left = dict(opening)
    for user_id, _, _, amount in kept.bets.values():
        left[user_id] -= amount
    return [
        f"{user_id} has {kept.balances[user_id]} cents instead of {cents}"
        for user_id, cents in left.items()
        if kept.balances[user_id] != cents
    ]


async def faults_at_the_end(site: Site) -> list[str]:
    """The same once every request has its answer: then nothing else may be there either."""
    found = await faults(site)
    told = {str(answer["bet_id"]) for _, answer in site.crowd.acknowledged()}
    if told != read(site.database).bets.keys():
        found.append("there are bets that nobody was told of")
    found += [f"{ask.key} was never answered" for ask in site.crowd.asks if not ask.answers]
    return found
