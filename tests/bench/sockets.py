"""A crowd of WebSocket clients on the provisioned machine, as live pages are: each comes back
when it is sent away, and says how that went.

A process of its own (`python -m bench.sockets`), so that its work is no part of the bets'
latency. Its first line of input is JSON: `sources`, one client each, and `tokens` of the
first of them, who are signed in. It prints `ready` when all are connected, and when its input
ends one line of JSON: see `Crowd.report`. Times are of the monotonic clock, in s.
"""

import asyncio
import gc
import sys
import time
from collections import Counter, OrderedDict
from dataclasses import asdict, dataclass
from typing import Any, cast

import orjson
import uvloop

from bench import frames
from bench.bettors import NGINX
from bench.own_events import OwnEvents

POLITE, UNSAID = 1012, 1006
#: A client that was not told when to come again waits this long, in s.
_RETRY_S = 0.5
#: Clients come one by one, so many s apart.
_APART_S = 0.005
#: Frames that are remembered, so that a price is read once and not by each client.
_REMEMBERED = 64
#: The bars of a greeting are read so often at most, in s: another one's are the same.
_BARS_EVERY_S = 1.0
_PRICE, _GRID, _HELLO = b'{"type":"price"', b'{"type":"grid"', b'{"type":"hello"'


@dataclass
class Absence:
    """A connection that ended, until its client is back."""

    at: float
    code: int
    polite: bool  # it was told to come again, and then closed with 1012
    signed_in: bool
    back_s: float | None = None
    how: str = ""  # hello, resumed or reset; or again: sent away before it was back


class Crowd:
    """The clients, and what they saw together."""

    def __init__(self) -> None:
        #: When a price came first, to whomever, and its stamp (Unix ms).
        self.prices: list[tuple[float, int]] = []
        #: Stamps of bars that came in a greeting.
        self.greeted: set[int] = set()
        self.seen: OrderedDict[bytes, None] = OrderedDict()
        self.received = 0  # prices, by all clients
        self.absences: list[Absence] = []
        self.refused: list[tuple[float, str]] = []  # handshakes
        self.errors: Counter[str] = Counter()
        self._greeted_at = 0.0

    def price(self, frame: bytes, payload: bytes) -> None:
        """A price that no client had before."""
        self.seen[frame] = None
        if len(self.seen) > _REMEMBERED:
            self.seen.popitem(last=False)
        self.prices.append((time.monotonic(), orjson.loads(payload)["t"]))

    def hello(self, payload: bytes) -> None:
        """A greeting, with the bars until now."""
        now = time.monotonic()
        if now - self._greeted_at >= _BARS_EVERY_S:
            self._greeted_at = now
            self.greeted.update(bar["t"] for bar in orjson.loads(payload)["bars"])

    def report(self, clients: list["Client"], cpu_s: float, seconds: float) -> dict[str, Any]:
        """What is printed at the end."""
        return {
            "clients": len(clients),
            "connected": sum(client.back for client in clients),
            "received": self.received,
            "prices": self.prices,
            "greeted": sorted(self.greeted),
            "absences": [asdict(absence) for absence in self.absences],
            "refused": self.refused,
            "errors": self.errors,
            "traders": [
                {
                    "told": client.events.told,
                    "never_told": client.events.never_told,
                    "doubled": client.events.doubled,
                    "disordered": client.events.disordered,
                    "resets": client.events.resets,
                    "bets": sorted(client.bets),
                    "unsure": client.unsure,
                }
                for client in clients
                if client.token
            ],
            "core": cpu_s / seconds,
        }


class Client(asyncio.Protocol):
    """One page, over all its connections; signed in if it has a token."""

    def __init__(self, crowd: Crowd, source: str, token: str) -> None:
        self.token = token
        self.events = OwnEvents()
        self.bets: set[str] = set()  # heard of
        #: When it could not hear, until it was told to load everything anew.
        self.unsure: list[tuple[float, float]] = []
        self.back = False
        self._crowd = crowd
        self._source = source
        self._absence: Absence | None = None
        self._transport: asyncio.Transport
        self._begin()

    def _begin(self) -> None:
        self._reader = frames.Reader()
        self._head = b""
        self._upgraded = False
        self._code = UNSAID
        self._ended = False
        self._retry_s: float | None = None  # as a restarting service hinted
        self._gone = asyncio.get_running_loop().create_future()

    async def stay(self) -> None:
        """Be connected, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            self._begin()
            try:
                await loop.create_connection(lambda: self, *NGINX, local_addr=(self._source, 0))
                await self._gone
            except OSError as error:
                self._crowd.refused.append((time.monotonic(), f"{type(error).__name__}: {error}"))
            await asyncio.sleep(_RETRY_S if self._retry_s is None else self._retry_s)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(frames.handshake("/ws", "127.0.0.1"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._upgraded:
            said = self._head.partition(b"\r\n")[0].decode(errors="replace")
            self._crowd.refused.append((time.monotonic(), said or f"no answer: {exc}"))
        elif not self._ended:
            self._left()
        self._gone.set_result(None)

    def _left(self) -> None:
        """Note that the connection ends; a client that was not back yet goes on being away."""
        at, before = time.monotonic(), self._absence
        if before is not None and before.back_s is None:
            at, before.how = before.at, "again"
        polite = self._code == POLITE and self._retry_s is not None
        self._absence = Absence(at, self._code, polite, bool(self.token))
        self._crowd.absences.append(self._absence)
        self.back, self._ended = False, True

    def _is_back(self, how: str) -> None:
        self.back = True
        if self._absence is not None and self._absence.back_s is None:
            self._absence.back_s = time.monotonic() - self._absence.at
            self._absence.how = how

    # What comes.

    def data_received(self, data: bytes) -> None:
        crowd = self._crowd
        if data in crowd.seen and not self._reader.rest:  # nearly always: a price, alone
            crowd.received += 1
            return
        if not self._upgraded:
            data = self._upgrade(data)
        for opcode, payload, frame in self._reader.feed(data):
            if opcode == frames.TEXT:
                if payload.startswith(_PRICE):
                    crowd.received += 1
                    if frame not in crowd.seen:
                        crowd.price(frame, payload)
                elif not payload.startswith(_GRID):
                    self._hear(payload)
            elif opcode == frames.PING:
                self._transport.write(frames.frame(frames.PONG, payload))
            elif opcode == frames.CLOSE:
                self._code = int.from_bytes(payload[:2]) or UNSAID
                self._left()
                self._transport.write(frames.frame(frames.CLOSE, payload[:2]))
                self._transport.close()

    def _upgrade(self, data: bytes) -> bytes:
        """What follows the answer to the handshake."""
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end:
            return b""
        if not head.startswith(b"HTTP/1.1 101"):
            self._transport.close()
            return b""
        self._upgraded = True
        return rest

    def _hear(self, payload: bytes) -> None:
        if payload.startswith(_HELLO):
            self._crowd.hello(payload)
            if self.token:
                self._sign_in()
            else:
                self._is_back("hello")
            return
        said = orjson.loads(payload)
        match said["type"]:
            case "bet" | "balance":
                self.events.event(said["seq"])
                if "bet_id" in said:
                    self.bets.add(said["bet_id"])
            case "status" if said["reason"] == "restart":
                self._retry_s = said["retry_in_ms"] / 1000
            case "error":
                self._crowd.errors[said["code"]] += 1
                if said["code"] == "storage_unavailable":
                    asyncio.get_running_loop().call_later(_RETRY_S, self._sign_in)
            case _:
                self._hear_who(said)

    def _hear_who(self, said: dict[str, Any]) -> None:
        """An answer to `auth` or `resume`."""
        events = self.events
        match said["type"]:
            case "authenticated":
                first = not events.epoch
                events.begin(said["epoch"], said["seq"])
                if first:
                    self._is_back("hello")
            case "resumed":
                events.resumed(said["seq"])
                self._is_back("resumed")
            case "reset":
                events.reset(said["epoch"], said["seq"])
                now = time.monotonic()
                self.unsure.append((self._absence.at if self._absence else now, now))
                self._is_back("reset")

    def _sign_in(self) -> None:
        """Say who this is and, if it was here before, what it knows: in one write."""
        said = frames.frame(frames.TEXT, orjson.dumps({"type": "auth", "token": self.token}))
        if self.events.epoch:
            known = {"type": "resume", "epoch": self.events.epoch, "seq": self.events.last}
            said += frames.frame(frames.TEXT, orjson.dumps(known))
        if not self._transport.is_closing():
            self._transport.write(said)


async def main() -> None:
    """Connect all, stay until the input ends."""
    told = orjson.loads(await asyncio.to_thread(sys.stdin.buffer.readline))
    tokens = told["tokens"]
    crowd = Crowd()
    clients = [
        Client(crowd, source, tokens[i] if i < len(tokens) else "")
        for i, source in enumerate(told["sources"])
    ]
    staying = []
    for client in clients:
        staying.append(asyncio.create_task(client.stay()))
        await asyncio.sleep(_APART_S)
    while not all(client.back for client in clients):
        await asyncio.sleep(0.1)
    gc.freeze()
    print("ready", flush=True)
    began, cpu = time.monotonic(), time.process_time()
    await asyncio.to_thread(sys.stdin.buffer.read)
    report = crowd.report(clients, time.process_time() - cpu, time.monotonic() - began)
    sys.stdout.buffer.write(orjson.dumps(report) + b"\n")


if __name__ == "__main__":
    uvloop.run(main())
