"""Two releases side by side: they share the public socket, and one link says which is live."""

import asyncio
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.conftest import process_environment, python
from tests.integration.conftest import Serve

from price_history import ENOUGH, bars, closes, write
from tap_trading.base import live
from tap_trading.base.clock import system_clock
from tap_trading.services import price, resolver

#: Hands over the listening socket as systemd does it.
_LIKE_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, "-m", sys.argv[2]])
"""


class Releases:
    """Folders of releases, a link for each colour, and the one that says who is live."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.live = root / "current"
        for colour, version in (("blue", "v1"), ("green", "v2")):
            (root / version).mkdir()
            (root / colour).symlink_to(version)
        self.switch("blue")

    def switch(self, colour: str) -> None:
        """Make a colour the live one, in one step."""
        fresh = self.root / ".new"
        fresh.symlink_to((self.root / colour).readlink())
        fresh.rename(self.live)

    def settings(self, colour: str) -> dict[str, str]:
        return {
            "TAP_LIVE_LINK": str(self.live),
            "TAP_RELEASE_LINK": str(self.root / colour),
        }

    def private(self, service: str, colour: str) -> Path:
        """The private socket of a colour's service."""
        return self.root / f"tap-trading-{service}-{colour}" / "private.sock"


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    root = tmp_path / "app"
    root.mkdir()
    return Releases(root)


@pytest.fixture
def start(
    releases: Releases, environment: dict[str, str]
) -> Iterator[Callable[[str, str, socket.socket], subprocess.Popen[bytes]]]:
    """`start(service, colour, listening)`: a process that ends with the test."""
    with ExitStack() as stack:

        def started(service: str, colour: str, listening: socket.socket) -> subprocess.Popen[bytes]:
            folder = releases.private(service, colour).parent
            folder.mkdir(exist_ok=True)
            process = subprocess.Popen(
                python(
                    *("-c", _LIKE_SYSTEMD),
                    *(str(listening.fileno()), f"tap_trading.services.{service}"),
                ),
                env=process_environment(
                    {
                        **environment,
                        **releases.settings(colour),
                        "RUNTIME_DIRECTORY": str(folder),
                    }
                ),
                pass_fds=[listening.fileno()],
                stdout=subprocess.DEVNULL,
            )
            stack.callback(process.wait, timeout=30)
            stack.callback(process.send_signal, signal.SIGTERM)
            return process

        yield started


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(1024)
        yield sock


@asynccontextmanager
async def privately(path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A session whose every request goes to this Unix socket, once it is there."""
    async with asyncio.timeout(30):
        while not path.exists():
            await asyncio.sleep(0.05)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
        yield session


async def ready(path: Path) -> dict[str, Any]:
    """What a service says of itself at its private socket, once it answers."""
    async with privately(path) as session, asyncio.timeout(30):
        while True:
            try:
                async with session.get("http://x/readyz") as answer:
                    return dict(await answer.json())
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)


class Load:
    """Requests one after the other on several kept connections, and who answered them."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/readyz"
        self.answered = 0
        self.failed: list[str] = []

    async def run(self, until: asyncio.Event) -> None:
        async with aiohttp.ClientSession() as session:
            while not until.is_set():
                try:
                    async with session.get(self._url) as answer:
                        await answer.read()
                        self.answered += 1
                except (aiohttp.ClientError, OSError) as error:
                    self.failed.append(repr(error))


async def test_the_live_one_alone_accepts_and_nobody_is_dropped_when_it_changes(
    releases: Releases,
    listening: socket.socket,
    start: Callable[[str, str, socket.socket], subprocess.Popen[bytes]],
) -> None:
    port = listening.getsockname()[1]
    processes = {colour: start("api", colour, listening) for colour in ("blue", "green")}
    for colour in processes:
        report = await ready(releases.private("api", colour))
        assert report["checks"]["write"] == "ok"
    load, stop = Load(port), asyncio.Event()

    def accepted(colour: str) -> int:
        """Connections to the public socket that a process has."""
        found = subprocess.run(
            ["ss", "-tnpH", "state", "established", f"sport = :{port}"],
            capture_output=True,
            text=True,
            check=True,
        )
        return found.stdout.count(f"pid={processes[colour].pid},")

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(load.run(stop))
        live_now, other = "blue", "green"
        for _ in range(4):
            await asyncio.sleep(0.5)
            assert accepted(live_now) == 8
            assert accepted(other) == 0
            live_now, other = other, live_now
            releases.switch(live_now)
        await asyncio.sleep(0.5)
        # The old colour ends; what is on its way to it is answered all the same.
        processes[other].send_signal(signal.SIGTERM)
        await asyncio.to_thread(processes[other].wait, 20)
        await asyncio.sleep(0.3)
        stop.set()
    assert not load.failed
    assert load.answered > 100


async def test_a_release_that_is_not_there_is_not_live(tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to("v1")
    (tmp_path / "blue").symlink_to("v1")
    assert live.live_of(None, None)()
    assert not live.live_of(tmp_path / "current", tmp_path / "blue")()
    (tmp_path / "v1").mkdir()
    assert live.live_of(tmp_path / "current", tmp_path / "blue")()
    (tmp_path / "current").unlink()
    assert not live.live_of(tmp_path / "current", tmp_path / "blue")()


async def leading(client: Any, check: str) -> bool:
    return (await (await client.get("/healthz")).json())["checks"].get(check) == "leading"


async def test_the_market_is_handed_over_without_a_gap(
    releases: Releases, serve: Serve, prices: Path
) -> None:
    write(prices, system_clock() - 100, closes(ENOUGH, 4_200_000), source="mock")
    environment = {"PRICES_DB_PATH": str(prices)}
    began = system_clock()
    async with (
        serve(price.build, **environment, **releases.settings("blue")) as blue,
        serve(price.build, **environment, **releases.settings("green")) as green,
    ):
        clients = {"blue": blue, "green": green}
        for colour in ("blue", "green", "blue", "green"):
            releases.switch(colour)
            async with asyncio.timeout(10):
                while not await leading(clients[colour], "storing"):
                    await asyncio.sleep(0.02)
            await asyncio.sleep(0.7)
            assert [await leading(each, "storing") for each in clients.values()].count(True) == 1
            report = await (await clients[colour].get("/readyz")).json()
            assert report["checks"]["write"] == "ok"
            assert not report["failing"]
    made = [bar for bar in bars(prices) if bar.t >= began]
    assert len(made) > 20
    assert max(b.t - a.t for a, b in pairwise(made)) <= 1_000


async def test_settling_is_handed_over(releases: Releases, serve: Serve) -> None:
    async with (
        serve(resolver.build, **releases.settings("blue")) as blue,
        serve(resolver.build, **releases.settings("green")) as green,
    ):
        clients = {"blue": blue, "green": green}
        for colour, other in (("blue", "green"), ("green", "blue"), ("blue", "green")):
            releases.switch(colour)
            async with asyncio.timeout(10):
                while not await leading(clients[colour], "resolver"):
                    await asyncio.sleep(0.02)
            assert not await leading(clients[other], "resolver")


async def test_a_private_socket_of_a_killed_process_is_no_obstacle(
    releases: Releases,
    listening: socket.socket,
    start: Callable[[str, str, socket.socket], subprocess.Popen[bytes]],
) -> None:
    first = start("ws", "blue", listening)
    path = releases.private("ws", "blue")
    await ready(path)
    first.kill()
    await asyncio.to_thread(first.wait, 10)
    assert path.exists()
    start("ws", "blue", listening)
    async with asyncio.timeout(30):
        while True:
            try:
                assert (await ready(path))["component"] == "ws"
                break
            except OSError:
                await asyncio.sleep(0.05)


async def test_clients_are_sent_to_the_live_release_one_after_the_other(
    releases: Releases,
    listening: socket.socket,
    start: Callable[[str, str, socket.socket], subprocess.Popen[bytes]],
) -> None:
    """Each hears of it first, and finds the other one at once, by the same address."""
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/ws"
    blue = start("ws", "blue", listening)
    start("ws", "green", listening)
    for colour in ("blue", "green"):
        await ready(releases.private("ws", colour))
    loop = asyncio.get_running_loop()
    async with aiohttp.ClientSession() as session:

        async def client() -> tuple[float, float]:
            """When it was sent away, and how long it was gone, in s."""
            async with session.ws_connect(url) as first:
                greeted.release()
                while (said := await first.receive_json())["type"] != "status" or (
                    said["reason"] != "restart"
                ):
                    pass
                assert (await first.receive()).data == 1012
            gone = loop.time()
            await asyncio.sleep(said["retry_in_ms"] / 1000)
            async with session.ws_connect(url) as second:
                assert (await second.receive_json())["type"] == "hello"
            return gone, loop.time() - gone

        greeted = asyncio.Semaphore(0)
        clients = [asyncio.create_task(client()) for _ in range(100)]
        for _ in clients:
            await greeted.acquire()
        releases.switch("green")
        await asyncio.sleep(0.1)
        blue.send_signal(signal.SIGTERM)
        told = await asyncio.wait_for(asyncio.gather(*clients), 30)
    times = [gone for gone, _ in told]
    assert max(times) - min(times) > 0.3  # 100 times 5 ms
    assert max(away for _, away in told) < 5
