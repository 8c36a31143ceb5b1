"""Traders who never give up: a request without an answer is sent again, with its key, until
there is one.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson
from tests.faults.site import STAKES, User

from tap_trading.base.clock import system_clock

_PAUSE_S = 0.02  # after a 503


class Answer(NamedTuple):
    """An answer of the API; of a problem, the body is only its code."""

    status: int
    body: bytes


@dataclass
class Ask:
    """A request, and what became of it."""

    user: User
    key: str
    cell_id: str
    amount: int
    expected: frozenset[int]
    answers: set[Answer] = field(default_factory=set)
    cut_off: list[int] = field(default_factory=list)  # Unix ms, when a connection was lost

    def request(self) -> bytes:
        body = orjson.dumps({"cell_id": self.cell_id, "amount": self.amount})
        return (
            "POST /api/bets HTTP/1.1\r\nHost: tap\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {self.user.token}\r\nIdempotency-Key: {self.key}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body


class _Connection:
    """A connection to the API, made anew whenever it was cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes) -> Answer:
        """The answer. Raises OSError or EOFError when the connection is cut before it."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
        except (OSError, EOFError):
            self.close()
            raise
        if b"connection: close" in head.lower():
            self.close()
        status = int(head[9:12])
        assert status != 503 or b"retry-after:" in head.lower(), head
        return Answer(status, body if status == 202 else orjson.loads(body)["code"].encode())

    def close(self) -> None:
        if self._streams:
            self._streams[1].transport.abort()
            self._streams = None


class Crowd:
    """Traders on many connections who bet as fast as they are answered."""

    def __init__(
        self, port: int, users: list[User], poor: User, cells: list[str], chance: random.Random
    ) -> None:
        """`poor` runs out of money on the way."""
        self.asks: list[Ask] = []
        self.statuses: Counter[str] = Counter()
        self.last_answer = 0.0  # monotonic
        self._port = port
        self._chance = chance
        self._users = [*users, poor]
        self._poor = poor
        self._cells = {user: iter(cells) for user in self._users}
        self._tasks: list[asyncio.Task[None]] = []
        self._going_home = False

    def start(self, connections: int) -> None:
        self._tasks = [asyncio.create_task(self._trade()) for _ in range(connections)]

    async def end(self) -> None:
        """Wait until every request has its answer; no new ones are sent."""
        self._going_home = True
        await asyncio.gather(*self._tasks)

    async def stop(self) -> None:
        """Go at once, whatever is unanswered."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def answered(self) -> None:
        """Wait for the next answer of any kind."""
        before = self.last_answer
        while self.last_answer == before:
            for task in self._tasks:
                if task.done():
                    task.result()  # whoever has failed tells why
            await asyncio.sleep(0.002)

    def acknowledged(self) -> Iterator[tuple[Ask, dict[str, object]]]:
        """The requests that were answered 202, with that answer."""
        for ask in self.asks:
            for answer in ask.answers:
                if answer.status == 202:
                    yield ask, orjson.loads(answer.body)

    async def _trade(self) -> None:
        connection = _Connection(self._port)
        try:
            while not self._going_home:
                await self._ask(connection, self._next())
        finally:
            connection.close()

    async def _ask(self, connection: _Connection, ask: Ask) -> None:
        """Send the request until there is an answer that is one."""
        while True:
            try:
                answer = await connection.send(ask.request())
            except (OSError, EOFError):
                ask.cut_off.append(system_clock())
                continue
            self._count(answer)
            if answer.status != 503:
                ask.answers.add(answer)
                return
            await asyncio.sleep(_PAUSE_S)

    def _count(self, answer: Answer) -> None:
        self.last_answer = time.monotonic()
        name = str(answer.status)
        if answer.status != 202:
            name += f" {answer.body.decode()}"
        self.statuses[name] += 1

    def _next(self) -> Ask:
        """Mostly a new bet; now and then one that was sent before, or that must be refused."""
        choice = self._chance.random()
        if choice < 0.75 or not self.asks:
            return self._new_bet()
        earlier = self._chance.choice(self.asks[-500:])
        if choice < 0.95:
            return earlier  # which may still be under way: the second tab
        accepted = {answer.status for answer in earlier.answers} == {202}
        if not accepted:
            return earlier
        if choice < 0.975:
            other = self._chance.choice([stake for stake in STAKES if stake != earlier.amount])
            return Ask(earlier.user, earlier.key, earlier.cell_id, other, frozenset({422}))
        # The poor may have run out of money, but the cell is looked at first.
        return self._keep(earlier.user, earlier.cell_id, frozenset({409}))

    def _new_bet(self) -> Ask:
        user = self._chance.choice(self._users)
        expected = frozenset({202, 402} if user is self._poor else {202})
        return self._keep(user, next(self._cells[user]), expected)

    def _keep(self, user: User, cell_id: str, expected: frozenset[int]) -> Ask:
        ask = Ask(user, f"key-{len(self.asks)}", cell_id, self._chance.choice(STAKES), expected)
        self.asks.append(ask)
        return ask
