"""HTTP load of prepared requests, cheap enough not to be what is measured.

Closed loop: so many connections, each sends its next request when it has its answer. Open
loop: requests fall due at a rate whatever the answers do, and a latency counts from that
moment, so that a server that stalls cannot hide it. Standard library only: the same file
runs on a provisioned machine.
"""

import asyncio
import errno
import gc
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

Requests = Iterator[bytes]
Rate = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request ended."""

    number: int  # in the order of the requests, from 0
    due: float  # s since the start
    ms: float  # from then to the answer, or to the loss
    status: int  # 0: its connection ended without an answer
    code: str  # of a problem
    body: bytes


Observe = Callable[[Outcome], None]

#: How long after the last request its answer is waited for, in s.
_PATIENCE_S = 15.0
#: No use in trying to connect again.
_HOPELESS = {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL}
#: Requests that may wait in an open loop for a free connection; more are not sent.
_MOST_DUE = 20_000


@dataclass
class Result:
    """What one load saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)  # of problems
    without_retry_after: int = 0  # 429 and 503 that do not say when to come again
    lost: int = 0  # requests whose connection ended without an answer
    unsent: int = 0  # fell due and found no connection
    unconnected: int = 0  # attempts to connect that failed
    began: float = 0.0  # by the monotonic clock, s
    seconds: float = 0.0
    #: When each answered request fell due (s since the start), and its latency in ms.
    answers: list[tuple[float, float, int]] = field(default_factory=list)
    server_cpu_us: float = 0.0  # per request
    own_cpu: float = 0.0  # share of a core this load took

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.answers) / self.seconds

    def latencies(self, since: float = 0.0, until: float = 1e9, status: int = 202) -> list[float]:
        """Sorted latencies (ms) of answers with `status` that fell due in this span (s)."""
        return sorted(ms for at, ms, got in self.answers if since <= at < until and got == status)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of the sorted values do not exceed; 0 when there is none."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def cpu_seconds(pid: int) -> float:
    """CPU time a process has used, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


class _Connection(asyncio.Protocol):
    """One client's connection; says `ready` whenever it may send."""

    def __init__(self, load: "_Load") -> None:
        self._load = load
        self._transport: asyncio.Transport
        self._number = 0
        self._due: float | None = None
        self._received = b""
        self._closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._load.ready(self)

    def send(self, request: bytes, number: int, due: float) -> None:
        self._number, self._due = number, due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        data = self._received + data if self._received else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._received = data
            return
        head = data[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(data) < end + 4 + length:
            self._received = data
            return
        self._received = b""
        due, self._due = self._due, None
        self._load.answered(self._number, due or 0.0, head, data[end + 4 :])
        if b"connection: close" in head:
            self._closing = True
            self._transport.close()
        else:
            self._load.ready(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose()
        self._load.gone(self)

    def close(self) -> None:
        self._lose()
        self._transport.abort()

    def _lose(self) -> None:
        due, self._due = self._due, None
        if due is not None:
            self._load.lost(self._number, due)


class _Load:
    def __init__(
        self,
        address: tuple[str, int],
        requests: Requests,
        sources: list[str],
        observe: Observe = lambda _: None,
    ) -> None:
        self.result = Result()
        self.idle: deque[_Connection] = deque()
        self.under_way = 0
        self.changed = asyncio.Event()
        self.on_ready: Callable[[], None] = lambda: None
        self.requests = requests
        self._observe = observe
        self._sent = 0
        self._address = address
        self._sources = sources  # local addresses, "" for any
        self._source_of: dict[_Connection, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = False
        self._began = 0.0

    async def connect(self) -> None:
        for source in self._sources:
            await self._connect(source)

    def start(self) -> None:
        self._began = self.result.began = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._began

    async def _connect(self, source: str) -> None:
        loop = asyncio.get_running_loop()
        local = (source, 0) if source else None
        while not self._over:
            try:
                _, connection = await loop.create_connection(
                    lambda: _Connection(self), *self._address, local_addr=local
                )
            except OSError as error:
                if error.errno in _HOPELESS:
                    raise
                self.result.unconnected += 1
                await asyncio.sleep(0.05)
            else:
                self._source_of[connection] = source
                return

    def send(self, connection: _Connection, due: float) -> bool:
        request = next(self.requests, None)
        if request is None:
            return False
        self.under_way += 1
        connection.send(request, self._sent, due)
        self._sent += 1
        return True

    def ready(self, connection: _Connection) -> None:
        self.idle.append(connection)
        self.on_ready()

    def answered(self, number: int, due: float, head: bytes, body: bytes) -> None:
        self.under_way -= 1
        result, status, code = self.result, int(head[9:12]), ""
        ms = (self.now() - due) * 1000
        result.answers.append((due, ms, status))
        result.statuses[status] += 1
        if status >= 400:
            code = body.partition(b'"code":"')[2].partition(b'"')[0].decode()
            result.codes[code] += 1
            if status in (429, 503) and b"retry-after:" not in head:
                result.without_retry_after += 1
        self._observe(Outcome(number, due, ms, status, code, body))
        self.changed.set()

    def lost(self, number: int, due: float) -> None:
        self.under_way -= 1
        self.result.lost += 1
        self._observe(Outcome(number, due, (self.now() - due) * 1000, 0, "", b""))
        self.changed.set()

    def gone(self, connection: _Connection) -> None:
        source = self._source_of.pop(connection, "")
        if connection in self.idle:
            self.idle.remove(connection)
        if not self._over:
            task = asyncio.get_running_loop().create_task(self._connect(source))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        deadline = time.perf_counter() + _PATIENCE_S
        while self.under_way and time.perf_counter() < deadline:
            self.changed.clear()
            try:
                await asyncio.wait_for(self.changed.wait(), 0.5)
            except TimeoutError:
                continue
        self.result.seconds = self.now()
        self._over = True
        for connection in list(self._source_of):
            connection.close()
        for task in self._tasks:
            task.cancel()


async def closed_loop(
    address: tuple[str, int], requests: Requests, connections: int, pid: int
) -> Result:
    """Send every request over so many connections, each waiting for its answer."""
    load = _Load(address, requests, [""] * connections)
    await load.connect()
    finished = False

    def on_ready() -> None:
        nonlocal finished
        while load.idle and not finished:
            finished = not load.send(load.idle.popleft(), load.now())

    cpu, own = cpu_seconds(pid), time.process_time()
    load.start()
    load.on_ready = on_ready
    on_ready()
    while not finished or load.under_way:
        load.changed.clear()
        await load.changed.wait()
    seconds = load.now()
    used = cpu_seconds(pid) - cpu
    own = time.process_time() - own
    await load.drain()
    load.result.seconds = seconds
    load.result.own_cpu = own / seconds
    load.result.server_cpu_us = used / max(len(load.result.answers), 1) * 1e6
    return load.result


async def open_loop(
    address: tuple[str, int],
    requests: Requests,
    *,
    rate: Rate,
    seconds: float,
    sources: list[str],
    cpu: Callable[[], float] = float,
    observe: Observe = lambda _: None,
    stop: asyncio.Event | None = None,
) -> Result:
    """Send for so long, or until `stop`, `rate(t)` requests a second at second `t`; `cpu` tells
    the CPU time (s) that the server has used, and `observe` is told how each request ended.
    """
    load = _Load(address, requests, sources, observe)
    await load.connect()
    due: deque[float] = deque()

    def on_ready() -> None:
        while due and load.idle:
            load.send(load.idle.popleft(), due.popleft())

    load.on_ready = on_ready
    gc.collect()
    gc.disable()
    used, own = cpu(), time.process_time()
    load.start()
    at = 0.0
    while (now := load.now()) < seconds and not (stop and stop.is_set()):
        while at <= now:
            if len(due) < _MOST_DUE:
                due.append(at)
            else:
                load.result.unsent += 1
            at += 1 / max(rate(at), 1.0)
        on_ready()
        # uvloop would not wait at all for less than a millisecond, but spin.
        await asyncio.sleep(max(at - load.now(), 0.001))
    load.result.unsent += len(due)
    due.clear()
    sent_for = load.now()
    used = cpu() - used
    own = time.process_time() - own
    await load.drain()
    gc.enable()
    load.result.own_cpu = own / sent_for
    load.result.seconds = sent_for
    load.result.server_cpu_us = used / max(len(load.result.answers), 1) * 1e6
    return load.result
