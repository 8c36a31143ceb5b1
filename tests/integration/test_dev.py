"""`make dev`: the whole site on this host, from one program that cleans up after itself."""

import asyncio
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import dev
import dev_front
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from tests.conftest import ROOT, process_environment

Start = Callable[..., "Running"]


class Running:
    """A started `scripts/dev.py` with all it has said."""

    def __init__(self, folder: Path, port: int, **settings: str) -> None:
        self.folder = folder
        self.log = folder.parent / f"dev-{port}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, ROOT / "scripts/dev.py", "--folder", folder, "--port", str(port)],
                env=process_environment(settings),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    async def url(self) -> str:
        """The site's address, once it says that it runs."""
        async with asyncio.timeout(40):
            while not (found := re.search(r"the site runs at (\S+)/\n", self.log.read_text())):
                assert self.process.poll() is None, self.log.read_text()
                await asyncio.sleep(0.05)
        return found[1]

    def ended(self, within_s: float = 20) -> int:
        return self.process.wait(timeout=within_s)

    def descendants(self) -> set[str]:
        """Every process that uses this test's folder: Redis by its place, the others by settings."""
        return {entry.name for entry in Path("/proc").glob("[1-9]*") if self._holds(entry)}

    def _holds(self, entry: Path) -> bool:
        try:
            environment = (entry / "environ").read_bytes()
            place = (entry / "cwd").readlink()
        except OSError:
            return False
        return place == self.folder or f"DB_PATH={self.folder}/bets.db\0".encode() in environment


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Running] = []

    def run(port: int = 0, folder: str = "scratch", **settings: str) -> Running:
        started.append(Running(tmp_path / folder, port, **settings))
        return started[-1]

    yield run
    for site in started:
        if site.process.poll() is None:
            site.process.kill()
            site.process.wait()


async def gone(site: Running) -> None:
    async with asyncio.timeout(12):
        while site.descendants():
            await asyncio.sleep(0.05)


async def test_one_origin_serves_page_api_and_stream_until_ctrl_c(start: Start) -> None:
    site = start(TAP_MOCK_START="1234500")
    url = await site.url()
    assert len(site.descendants()) == 5  # Redis and the four services
    async with aiohttp.ClientSession(base_url=url) as session:
        async with session.get("/") as answer:
            assert answer.status == 200
            assert answer.content_type == "text/html"
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
            assets = re.findall(r'(?:src|href)="(/assets/[^"]+)"', await answer.text())
        assert assets
        for asset in assets:
            async with session.get(asset) as answer:
                assert answer.status == 200, asset
        async with session.get("/assets/none.js") as answer:
            assert answer.status == 404
        async with session.get("/api/healthz") as answer:
            assert answer.status == 200
            assert (await answer.json())["component"] == "api"
        async with session.post("/api/bets", data=b"{}") as answer:
            assert answer.status == 401
            assert answer.content_type == "application/problem+json"
            assert (await answer.json())["code"] == "unauthenticated"
        address = {"address": "11111111111111111111111111111112"}
        async with session.post("/api/auth/challenge", json=address) as answer:
            first, _ = (await answer.json())["message"].split(" ", 1)
            assert url == f"http://{first}"
        async with session.get("/ws") as answer:
            assert answer.status == 426
        with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
            await session.ws_connect("/ws", headers={"Origin": "http://elsewhere.example"})
        async with session.ws_connect("/ws", headers={"Origin": url}) as stream:
            hello = await stream.receive_json(timeout=5)
            assert hello["type"] == "hello"
            # Settings of the environment reach the services.
            assert abs(hello["price"]["price"] - 1_234_500) < 50_000
            await stream.send_json({"type": "echo", "said": "ü"})
            while (said := await stream.receive_json(timeout=5))["type"] != "echo":
                pass
            assert said["said"] == "ü"

            began = time.monotonic()
            site.process.send_signal(signal.SIGINT)
            async for _ in stream:
                pass
            assert stream.close_code == 1012
    assert await asyncio.to_thread(site.ended) == 0
    assert time.monotonic() - began < 5
    assert not site.descendants()
    assert re.search(
        r"^\d\d:\d\d:\d\d\.\d{3} info +ws +client connected .*remote=127.0.0.1",
        site.log.read_text(),
        re.MULTILINE,
    )


async def test_a_second_one_is_refused_and_a_killed_one_leaves_nothing(start: Start) -> None:
    first = start()
    port = int((await first.url()).rpartition(":")[2])
    same_port = start(port, folder="other")
    assert await asyncio.to_thread(same_port.ended) == 1
    assert same_port.log.read_text().startswith(f"dev: 127.0.0.1:{port} is in use; ")
    same_folder = start()
    assert await asyncio.to_thread(same_folder.ended) == 1
    assert same_folder.log.read_text().startswith(f"dev: another one runs in {first.folder}; ")

    first.process.kill()
    await gone(first)


async def test_a_service_that_ends_ends_everything(start: Start) -> None:
    site = start(TAP_PRICE_SOURCE="replay", TAP_REPLAY_FILE="/nowhere/trades.csv")
    assert await asyncio.to_thread(site.ended) == 1
    *_, last = site.log.read_text().splitlines()
    assert last == "dev: price ended with exit code 69, so everything ends"
    assert "/nowhere/trades.csv: No such file" in site.log.read_text()
    assert not site.descendants()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"TAP_PRICE_SORCE": "replay"}, "dev: TAP_PRICE_SORCE is not a setting\n"),
        ({"TAP_PRICE_SOURCE": "replay"}, "dev: TAP_PRICE_SOURCE=replay needs TAP_REPLAY_FILE\n"),
        (
            {"PATH": "/nowhere"},
            "dev: redis-server is missing; install it: apt-get install redis-server\n",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(
    start: Start, settings: dict[str, str], sentence: str
) -> None:
    site = start(**settings)
    assert site.ended() == 1
    assert site.log.read_text() == sentence


def test_its_own_places_win_over_the_environment() -> None:
    given = dict.fromkeys(dev.OWN_SETTINGS, "/elsewhere:1")
    assert dev.given_settings({**given, "TAP_VM_SSH_PORT": "1", "TAP_MOCK_SEED": "7"}) == {
        "TAP_MOCK_SEED": "7"
    }


def test_a_port_that_cannot_be() -> None:
    with pytest.raises(dev.DevError, match=r"cannot listen on 127\.0\.0\.1:70000"):
        dev._bound_to(70_000)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(dev.DevError, match="is in use"):
            dev._bound_to(taken.getsockname()[1])


async def test_the_page_follows_its_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "index.html").write_text("<p>first</p>")
    monkeypatch.setattr(dev_front.build_frontend, "SOURCE", tmp_path)
    said: list[str] = []
    app = web.Application()
    page = dev_front.Page(lambda _component, message, _level: said.append(message))
    app.router.add_get("/{path:.*}", page.get)
    async with TestClient(TestServer(app)) as client:
        assert await (await client.get("/")).text() == "<p>first</p>"
        (tmp_path / "index.html").write_text("<p>second one</p>")
        assert await (await client.get("/any/path")).text() == "<p>second one</p>"
        assert (await client.get("/metrics")).status == 404
        (tmp_path / "index.html").write_text('<script src="/none.js"></script>')
        broken = await client.get("/")
        assert broken.status == 500
        assert "there is no none.js" in await broken.text()
        (tmp_path / "index.html").write_text("<p>mended</p>")
        assert await (await client.get("/")).text() == "<p>mended</p>"
    assert said[0] == said[-1] == "built anew"
    assert "there is no none.js" in said[1]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            """{"level":"info","time":"2026-02-03T12:00:00.123Z","request_id":"req_1",
            "component":"api","message":"bet placed","amount":1000,"why":"a b","none":null}""",
            '12:00:00.123 info     api    bet placed request_id=req_1 amount=1000 why="a b" none=null',
        ),
        (
            r"""{"level":"error","time":"2026-02-03T12:00:00.000Z","component":"ws",
            "message":"broke","exception":"Traceback:\n  line"}""",
            "12:00:00.000 error    ws     broke\n    Traceback:\n      line",
        ),
        ("applied 001_initial.sql", None),
        ('{"other": "json"}', None),
        ("[1]", None),
        ("", None),
    ],
)
def test_log_lines_become_readable(line: str, text: str | None) -> None:
    assert dev.readable("x", line) == text
