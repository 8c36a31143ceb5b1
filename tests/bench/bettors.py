"""Wallets that bet on a provisioned machine, within every limit of production.

Runs on the machine itself, with the release's Python. Wallets are signed in directly, because
signing thousands in through the site would take longer than what is measured. Bets go through
Nginx from as many loopback addresses as its limit for one address needs, on cells that the
site offers at that moment.
"""

import asyncio
import http.client
import json
import random
import sys
import time
from collections.abc import Iterator
from itertools import count, cycle
from pathlib import Path

from bench.site import sign_in
from tap_trading.base.config import Address
from tap_trading.base.redis import connect

DATABASE = Path("/data/bets.db")
REDIS = Address(path="/run/redis/redis-server.sock")
NGINX = ("127.0.0.1", 80)
STAKE = 100
BALANCE = 10**8
#: Columns that may close before a bet on them arrives are left alone.
SOONEST = 1
#: Rows near the edge of the grid may leave it before a bet on them arrives.
EDGE = 3
#: How many cells are drawn for a bet before all are looked at.
_DRAWN = 8
#: How long an answer is waited for, in s.
_PATIENCE_S = 15.0


async def signed_in(wallets: int) -> list[str]:
    """So many wallets with money; returns a session's token of each."""
    redis = connect(REDIS)
    tokens = await sign_in(DATABASE, redis, wallets, BALANCE)
    await redis.aclose()
    return tokens


def loopback(number: int) -> list[str]:
    """So many addresses of this machine."""
    return [f"127.{i // 62500 + 1}.{i // 250 % 250}.{i % 250 + 1}" for i in range(number)]


def get(path: str, source: str, token: str = "") -> bytes:
    """The body of a 200. Raises OSError or HTTPException for anything else."""
    connection = http.client.HTTPConnection(*NGINX, source_address=(source, 0), timeout=_PATIENCE_S)
    try:
        connection.request(
            "GET", path, headers={"Authorization": f"Bearer {token}"} if token else {}
        )
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise OSError(f"GET {path}: {answer.status} {body[-200:].decode(errors='replace')}")
    return body


def opened(tokens: list[str], sources: list[str]) -> None:
    """Each wallet opens the page, which asks who it is."""
    for token, source in zip(tokens, sources, strict=False):
        try:
            get("/api/me", source, token)
        except (OSError, http.client.HTTPException) as error:
            sys.exit(f"a wallet is not signed in: {error}")


class Offer:
    """The cells the site offers now."""

    def __init__(self) -> None:
        self.cells: list[str] = []
        self.asked = 0
        #: When it could not be had, by the monotonic clock (s), and why.
        self.failures: list[tuple[float, str]] = []

    async def follow(self) -> None:
        """Ask twice a second, each time as another address."""
        for number in count():
            source = f"127.250.{number // 250 % 250}.{number % 250 + 1}"
            self.asked += 1
            try:
                market = json.loads(await asyncio.to_thread(get, "/api/market", source))
            except (OSError, http.client.HTTPException) as error:
                self.failures.append((time.monotonic(), f"{type(error).__name__}: {error}"))
            else:
                # While nothing is offered bets go on, to be refused.
                self.cells = self._middle(market) or self.cells
            await asyncio.sleep(0.5)

    async def known(self) -> None:
        """Wait until there is something to bet on."""
        while not self.cells:
            await asyncio.sleep(0.1)

    @staticmethod
    def _middle(market: dict[str, list[dict[str, str]]]) -> list[str]:
        starts = sorted({column["start"] for column in market["columns"]})[SOONEST:]
        by_start: dict[int, list[tuple[int, str]]] = {int(start): [] for start in starts}
        for cell in market["cells"]:
            _, start, _, low, _ = cell["cell_id"].split(":")
            if int(start) in by_start:
                by_start[int(start)].append((int(low), cell["cell_id"]))
        return [name for rows in by_start.values() for _, name in sorted(rows)[EDGE:-EDGE]]


class Bets:
    """Bets of these wallets in turn, never two on a cell while there are others."""

    def __init__(self, offer: Offer, tokens: list[str]) -> None:
        #: What the keys of all these bets begin with.
        self.run = f"{random.randrange(16**8):08x}-"
        self._offer = offer
        self._tokens = tokens

    def key(self, number: int) -> str:
        """The Idempotency-Key of a bet, numbered from 0."""
        return f"{self.run}{number:x}"

    def wallet(self, number: int) -> int:
        """Whose bet it is."""
        return number % len(self._tokens)

    def requests(self) -> Iterator[bytes]:
        """No end of them."""
        taken: list[set[str]] = [set() for _ in self._tokens]
        for number, (wallet, token) in zip(count(), cycle(enumerate(self._tokens))):
            cell = self._cell(taken[wallet])
            taken[wallet].add(cell)
            body = f'{{"cell_id":"{cell}","amount":{STAKE}}}'
            yield (
                "POST /api/bets HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                f"Authorization: Bearer {token}\r\nIdempotency-Key: {self.key(number)}\r\n"
                "Content-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n{body}"
            ).encode()

    def _cell(self, taken: set[str]) -> str:
        cells = self._offer.cells
        drawn = random.sample(cells, min(_DRAWN, len(cells)))
        free = [name for name in drawn if name not in taken]
        if not free:
            free = [name for name in cells if name not in taken]
        return (free or drawn)[0]
