"""`kill -9` of the API under load: what was acknowledged is there, and nothing is there twice."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
from tests.faults.crowd import Ask
from tests.faults.load import faults, faults_at_the_end, under_load
from tests.faults.site import Api

from tap_trading.base.logger import rfc3339_ms
from tap_trading.base.redis import Redis

ROUNDS = 25

#: Answers before it has committed; the time in between is what a slow disk takes.
HASTY = """
import time
from tap_trading.ledger import batcher
from tap_trading.services import api

careful = batcher.Batcher._handle_items

def hasty(self, connection, jobs):
    careful(self, connection, jobs)
    answers = [(job.reply, job.answer) for job in jobs]
    for job in jobs:
        job.reply = lambda answer: None
    self._loop.call_soon_threadsafe(lambda: [reply(answer) for reply, answer in answers])
    time.sleep(0.02)

batcher.Batcher._handle_items = hasty
api.main()
"""


def placed_by_the_dead(asks: list[Ask], told: dict[str, str]) -> int:
    """Requests that were cut off, though their bet had been placed."""
    return sum(
        any(told[ask.key] <= rfc3339_ms(at) for at in ask.cut_off)
        for ask in asks
        if ask.cut_off and ask.key in told
    )


@pytest.mark.campaigns(1, 12)
async def test_killed_again_and_again_no_bet_is_lost_or_doubled(
    campaign: int,
    environment: dict[str, str],
    database: Path,
    redis: Redis,
    tmp_path: Path,
    measured: Callable[[str], None],
) -> None:
    chance = random.Random(campaign)
    api = Api(environment, tmp_path / "api.log")
    async with under_load(api, database, redis, chance) as site:
        await site.restart()
        for number in range(ROUNDS):
            if number % 3 == 2:  # once more before it has come up: while it recovers the books
                api.kill()
                api.start()
                await asyncio.sleep(chance.uniform(0, 1.1 * min(site.restarts)))
            else:
                await asyncio.sleep(chance.uniform(0, 0.5))
            api.kill()
            await site.restart()
            assert await faults(site) == []
        await site.crowd.end()
        assert await faults_at_the_end(site) == []
    crowd = site.crowd
    told = {ask.key: str(answer["placed_at"]) for ask, answer in crowd.acknowledged()}
    cut_off = [ask for ask in crowd.asks if ask.cut_off]
    measured(
        f"kill -9: {api.killed} times, {len(crowd.asks)} requests, answers {dict(crowd.statuses)}"
    )
    measured(
        f"  {len(cut_off)} requests cut off, {placed_by_the_dead(cut_off, told)} of them placed by"
        f" the process that died; restart to first answer {median(site.restarts):.2f} s in the"
        f" middle, {max(site.restarts):.2f} s at most"
    )
    assert cut_off
    assert crowd.statuses["402 insufficient_funds"]


async def test_an_answer_before_its_commit_would_be_found(
    environment: dict[str, str], database: Path, redis: Redis, tmp_path: Path
) -> None:
    """The control: an API that answers too early."""
    chance = random.Random(1)
    api = Api(environment, tmp_path / "api.log", program=("-c", HASTY))
    async with under_load(api, database, redis, chance) as site:
        await site.restart()
        for _ in range(5):
            await asyncio.sleep(0.3)
            api.kill()
            await site.restart()
            if any("acknowledged as" in sentence for sentence in await faults(site)):
                return
    pytest.fail("five kills of an API that answers too early, and nothing was found")
