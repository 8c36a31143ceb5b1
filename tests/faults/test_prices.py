"""`kill -9` of price services at random moments: one series of bars, final as far as it says, and
nothing published that is not in it.
"""

import asyncio
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from tests.conftest import process_environment, python
from tests.integration.test_processes import free_port

from price_history import bars, bars_until
from tap_trading.base import background
from tap_trading.base.clock import system_clock
from tap_trading.base.redis import Redis, Subscription
from tap_trading.game.volatility import VolatilityModel
from tap_trading.market.point import CHANNEL, PricePoint, decode
from tap_trading.services.runtime import EXIT_UNAVAILABLE

KILLS = 25
#: Whatever takes longer than this has not happened, in s.
PATIENCE_S = 60.0

#: Says that bars are final some time before they are.
HASTY = """
from tap_trading.market import price_store
from tap_trading.services import price

careful = price_store.finish_bars

def hasty(connection, until):
    connection.execute("DROP TRIGGER IF EXISTS bars_before_the_progress_are_final")
    careful(connection, until + 2000)

price_store.finish_bars = hasty
price.main()
"""


class PriceService:
    """A price service, to be started and killed again and again."""

    def __init__(self, settings: dict[str, str], log: Path, program: tuple[str, ...]) -> None:
        self._settings = settings | {"TAP_PRICE_LISTEN": f"127.0.0.1:{free_port()}"}
        self._program = program
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                python(*self._program),
                env=process_environment(self._settings),
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        assert self._process
        self._process.kill()
        self._process.wait()
        self._process = None

    def revive(self) -> None:
        """Start it again if it could not start, as systemd does it."""
        if self._process and self._process.poll() == EXIT_UNAVAILABLE:
            self.start()

    def stop(self) -> None:
        """Let it sleep in the middle of whatever it does."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        if self._process:
            self.kill()

    def said(self, message: str) -> int:
        """How often it has said this, in all its lives."""
        return self._log.read_text().count(f'"{message}"') if self._log.exists() else 0

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""


_PRICE = ("-m", "tap_trading.services.price")


@dataclass
class Market:
    """What was published, and what was in the database whenever somebody looked."""

    prices: Path
    services: list[PriceService]
    published: list[PricePoint] = field(default_factory=list)
    final: dict[int, int] = field(default_factory=dict)  # closes by stamp
    final_until: int = 0
    stopped: int = 0  # how often one was stopped

    def look(self) -> list[str]:
        """What is wrong with it at this moment."""
        until, found = self._moment()
        wrong = []
        if until > system_clock():
            wrong.append(
                f"bars are final until {until}, which is {until - system_clock()} ms ahead"
            )
        then = {t: close for t, close in found.items() if t < self.final_until}
        if then != self.final:
            wrong.append(f"final bars have changed: {sorted(then.items() ^ self.final.items())}")
        self.final_until, self.final = until, {t: c for t, c in found.items() if t < until}
        if late := [t for t in found if t >= until]:
            wrong.append(f"stored, and not counted as final: {late}")
        return wrong

    def _moment(self) -> tuple[int, dict[int, int]]:
        """Until when bars are final, and the closes of all, at one moment."""
        while True:
            until = bars_until(self.prices)
            found = {bar.t: bar.close for bar in bars(self.prices)}
            if bars_until(self.prices) == until:
                return until, found

    def look_at_all(self) -> list[str]:
        """What is wrong with the whole of it."""
        wrong = self.look()
        stored = bars(self.prices)
        closes = {bar.t: bar.close for bar in stored}
        for point in self.published:
            if closes.get(point.t) != point.price:
                wrong.append(f"published and not stored: {point}")
        # Who was stopped after it had stored a bar publishes that when it wakes; it is what was
        # stored, and whoever listens drops it.
        newest = self.published[0]
        for point in self.published[1:]:
            if point.t > newest.t:
                if point.seq <= newest.seq:
                    wrong.append(f"published {point} after {newest}")
                newest = point
            elif not self.stopped:
                wrong.append(f"published {point} after {newest}")
        model = VolatilityModel()
        for earlier, bar in pairwise(stored):
            if not bar.low <= earlier.close <= bar.high:
                wrong.append(f"{bar.t} does not reach the close before it")
            if bar.state != model.advance(earlier.state, bar.t, bar.close):
                wrong.append(f"the volatility of {bar.t} cannot be replayed")
        return wrong

    async def next_bar(self) -> int:
        """Wait for a bar that is made from now on; its stamp."""
        now = system_clock()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not (fresh := [bar.t for bar in bars(self.prices)[-20:] if bar.t > now]):
                    for service in self.services:
                        service.revive()
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pytest.fail("no bar:\n" + "\n".join(each.log[-2000:] for each in self.services))
        return fresh[0]


@asynccontextmanager
async def market(
    environment: dict[str, str],
    prices: Path,
    redis: Redis,
    folder: Path,
    count: int,
    program: tuple[str, ...] = _PRICE,
) -> AsyncIterator[Market]:
    """So many price services at one database, not started yet."""
    settings = environment | {"PRICES_DB_PATH": str(prices)}
    services = [
        PriceService(settings, folder / f"price{number}.log", program) for number in range(count)
    ]
    found = Market(prices, services)
    subscription = Subscription(redis, CHANNEL)

    async def listen() -> None:
        async for wire in subscription.messages():
            found.published.append(decode(wire))

    failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    async with background.running(listen(), "listener", failed):
        try:
            yield found
        finally:
            for service in services:
                service.close()
    assert not failed.done()


@pytest.mark.campaigns(1, 12)
async def test_killed_again_and_again_there_is_one_series_of_bars(
    campaign: int,
    environment: dict[str, str],
    prices: Path,
    redis: Redis,
    tmp_path: Path,
    measured: Callable[[str], None],
) -> None:
    chance = random.Random(campaign)
    waits: list[int] = []
    async with market(environment, prices, redis, tmp_path, 2) as found:
        first, second = found.services
        first.start()
        second.start()
        await found.next_bar()
        for number in range(KILLS):
            await asyncio.sleep(chance.uniform(0, 0.7))
            victim, other = chance.sample(found.services, 2)
            if number % 5 == 2:  # one that sleeps, and wakes up when its time is over
                # With the lock in its hand it keeps the other out as well, for up to 5 s.
                victim.stop()
                found.stopped += 1
                await asyncio.sleep(chance.uniform(2, 3))
                victim.go_on()
                await asyncio.sleep(chance.uniform(0, 0.5))
                assert found.look() == []
            if number % 5 == 4:  # both, so that nobody stands by
                other.kill()
                other.start()
                await asyncio.sleep(chance.uniform(0, 1.5))
            killed_at = system_clock()
            victim.kill()
            # Whoever is left goes on without anybody's doing.
            waits.append(await found.next_bar() - killed_at)
            assert found.look() == []
            victim.start()
        await asyncio.sleep(0.5)
        for service in found.services:
            service.kill()
        await asyncio.sleep(0.1)  # what they published last is on its way
        assert found.look_at_all() == []
    taken = sum(service.said("making the market") for service in found.services)
    measured(
        f"kill -9 of price: {KILLS + KILLS // 5} kills, {taken} takeovers,"
        f" {len(found.final)} bars, {len(found.published)} published; from a kill to the next"
        f" bar {sorted(waits)[len(waits) // 2]} ms in the middle, {max(waits)} ms at most"
    )
    assert taken > KILLS // 4


async def test_bars_that_are_called_final_too_soon_would_be_found(
    environment: dict[str, str], prices: Path, redis: Redis, tmp_path: Path
) -> None:
    """The control."""
    program = ("-c", HASTY)
    async with market(environment, prices, redis, tmp_path, 1, program) as found:
        found.services[0].start()
        await found.next_bar()
        assert any("ahead" in sentence for sentence in found.look())
