"""`kill -9` of resolvers at random moments: every bet is paid once, as its bars say."""

import asyncio
import random
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.conftest import process_environment, python
from tests.integration.test_processes import free_port

from market_days import BAR_MS, PRICE, Tape, Traders
from tap_trading.base.db import open_reader
from tap_trading.game.cell import Cell
from tap_trading.ledger.audit import audit
from tap_trading.settlement import evidence, verification

KILLS = 25
WIDTH = 2  # of a column, s
BETS_PER_BAR = 15


class Processes:
    """Two resolvers, killed in turn."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._environment = environment
        self._log = log
        self._ports = [free_port(), free_port()]
        self._running: list[subprocess.Popen[bytes] | None] = [None, None]

    def start(self, which: int) -> None:
        settings = {"TAP_RESOLVER_LISTEN": f"127.0.0.1:{self._ports[which]}"}
        with self._log.open("ab") as log:
            self._running[which] = subprocess.Popen(
                python("-m", "tap_trading.services.resolver"),
                env=process_environment(self._environment | settings),
                stdout=log,
                stderr=log,
            )

    def kill(self, which: int) -> None:
        process = self._running[which]
        assert process
        assert process.poll() is None, "a resolver ended by itself"
        process.kill()
        process.wait()
        self._running[which] = None

    def close(self) -> None:
        for process in self._running:
            if process:
                process.terminate()
        for process in self._running:
            if process:
                process.wait(15)


class Market:
    """Bars and bets in real time: a walk of the price, traders around it, now and then no price."""

    def __init__(self, tape: Tape, traders: Traders, chance: random.Random) -> None:
        self._tape = tape
        self._traders = traders
        self._chance = chance
        self._price = float(PRICE)
        self.outages: list[tuple[int, int]] = []  # begin and end, Unix ms
        self.bets: list[str] = []
        self._taken: set[tuple[str, int]] = set()

    async def trade(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(max(self._tape.now + BAR_MS - time.time() * 1000, 0) / 1000)
            if self._chance.random() < 0.02:
                begin = self._tape.now
                self._tape.miss(begin + self._chance.choice((500, 1000, 1100, 2500)))
                self.outages.append((begin, self._tape.now))
                continue
            self._price *= 1 + self._chance.gauss(0, 3e-5)
            self._tape.play([round(self._price)])
            self._bet()

    def _bet(self) -> None:
        now = self._tape.now
        first = (now // 1000 // WIDTH + 2) * WIDTH
        cells = set()
        while len(cells) < BETS_PER_BAR:
            low = (round(self._price) // 1000 + self._chance.randint(-2, 2)) * 1000
            start = first + self._chance.randrange(3) * WIDTH
            cells.add((Cell(start, WIDTH, low, low + 1000), self._chance.randrange(20)))
        free = [
            (cell, now, user, 100, self._chance.choice((None, None, 30_000)))
            for cell, user in sorted(cells, key=str)
            if (cell.cell_id, user) not in self._taken
        ]
        self._taken.update((cell.cell_id, user) for cell, _, user, _, _ in free)
        self.bets += self._traders.bet_many(free)


@asynccontextmanager
async def running(work: asyncio.Task[None]) -> AsyncIterator[None]:
    """End `work` with the block, and say what it died of."""
    try:
        yield
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


@pytest.mark.campaigns(1, 12)
async def test_killed_again_and_again_every_bet_is_paid_once(
    campaign: int,
    environment: dict[str, str],
    database: Path,
    prices: Path,
    tmp_path: Path,
    measured: Callable[[str], None],
) -> None:
    chance = random.Random(campaign)
    begin = int(time.time()) * 1000
    tape, traders = Tape(prices, begin), Traders(database, count=20)
    market = Market(tape, traders, chance)
    resolvers = Processes(environment, tmp_path / "resolver.log")
    try:
        for which in (0, 1):
            resolvers.start(which)
        trading = asyncio.create_task(market.trade())
        async with running(trading):
            await asyncio.sleep(2)
            for _ in range(KILLS):
                await asyncio.sleep(chance.uniform(0.05, 2.5))
                which = chance.randrange(2)
                resolvers.kill(which)
                resolvers.start(which)
                if trading.done():
                    trading.result()
        tape.stay(tape.now + 10_000)
        await settled(database)
    finally:
        resolvers.close()
        tape.close()
        traders.close()
    log = (tmp_path / "resolver.log").read_text()
    fates = check(database, prices, market)
    measured(
        f"kill -9 of resolvers: {KILLS} times, {len(market.bets)} bets, {dict(fates)},"
        f" {len(market.outages)} outages, taken over {log.count('resolving from now on')} times"
    )
    assert {"won", "lost", "void"} <= set(fates)


async def settled(database: Path) -> None:
    """Wait until no bet is open."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        connection = open_reader(database)
        left = connection.execute(
            "SELECT count(*) FROM bets WHERE status IN ('pending', 'confirmed')"
        ).get
        connection.close()
        if not left:
            return
        await asyncio.sleep(0.2)
    pytest.fail(f"{left} bets are open 30 s after the last column closed")


def check(database: Path, prices: Path, market: Market) -> Counter[str]:
    """Whether every bet is as its bars say, and void only for a reason; how many of each fate."""
    books, bars = open_reader(database), open_reader(prices)
    assert audit(books).findings == ()
    fates: Counter[str] = Counter()
    for bet_id in market.bets:
        found = evidence.decision(books, bet_id)
        assert found
        assert [verification.stored(found)] == verification.replay(
            evidence.cases(bars, [found], 300)
        )
        fates[found.status] += 1
        if found.void_reason in ("feed_outage", "no_price"):
            window = (found.bet.placed_at, (found.cell.start + found.cell.width) * 1000)
            assert any(begin < window[1] and end > window[0] for begin, end in market.outages)
        fates[found.void_reason or ""] += 1
    books.close()
    bars.close()
    del fates[""]
    return fates
