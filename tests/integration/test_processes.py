"""Services as processes: how they start, refuse to start, and end."""

import asyncio
import json
import signal
import socket
import subprocess
import time
from pathlib import Path

import aiohttp
import pytest
from tests.conftest import RedisServer, process_environment, python

from tap_trading.base.db import WriterLock
from tap_trading.ledger import migrations
from tap_trading.market import price_store


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def start(service: str, settings: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        python("-m", f"tap_trading.services.{service}"),
        env=process_environment(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, object]]]:
    """Exit code and log lines; every line is JSON."""
    out, _ = process.communicate(timeout=30)
    return process.returncode, [json.loads(line) for line in out.splitlines()]


async def healthy(port: int) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(30):
        while True:
            try:
                async with session.get(f"http://127.0.0.1:{port}/healthz") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)


def refused(service: str, settings: dict[str, str], code: int) -> str:
    """The one sentence a service that cannot start ends with."""
    returncode, lines = end(start(service, settings))
    assert returncode == code
    assert len(lines) == 1, lines
    assert lines[0]["level"] == "critical"
    assert lines[0]["component"] == service
    return str(lines[0]["error"])


@pytest.mark.parametrize("service", ["api", "ws", "price"])
async def test_a_service_starts_answers_and_ends_within_ten_seconds(
    service: str, environment: dict[str, str]
) -> None:
    port = free_port()
    process = start(service, {**environment, f"TAP_{service.upper()}_LISTEN": f"127.0.0.1:{port}"})
    try:
        await healthy(port)
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/version") as answer,
        ):
            assert set(await answer.json()) == {
                *("version", "build_time", "git_commit", "python_version"),
            }
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code, lines = await asyncio.to_thread(end, process)
        assert code == 0
        assert time.monotonic() - began < 10
        said = [line["message"] for line in lines]
        assert said[0] == "ready"
        assert "stopping" in said
        assert said[-1] == "stopped"
    finally:
        process.kill()


async def test_requests_under_way_are_answered_when_it_stops(environment: dict[str, str]) -> None:
    port = free_port()
    process = start("api", {**environment, "TAP_API_LISTEN": f"127.0.0.1:{port}"})
    try:
        await healthy(port)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /version HTTP/1.1\r\nHost: x\r\n")
        await writer.drain()
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        writer.write(b"\r\n")  # the request is complete only after the signal
        assert b" 200 OK" in await reader.readline()
        writer.close()
        assert (await asyncio.to_thread(end, process))[0] == 0
    finally:
        process.kill()


async def test_an_inherited_socket_is_used(environment: dict[str, str]) -> None:
    """As systemd does it: the listening socket is file descriptor 3."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        script = (
            "import os, sys\n"
            f"os.dup2({listening.fileno()}, 3)\n"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'tap_trading.services.api'])\n"
        )
        process = subprocess.Popen(
            python("-c", script),
            env=process_environment({**environment, "TAP_API_LISTEN": "127.0.0.1:1"}),
            pass_fds=[listening.fileno()],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            await healthy(port)
        finally:
            process.send_signal(signal.SIGTERM)
            assert (await asyncio.to_thread(end, process))[0] == 0


async def test_bets_come_through_an_inherited_unix_socket(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """As the unit has it: the port is file descriptor 3, the socket of bets is 4."""
    path = tmp_path / "bets.sock"
    with socket.socket() as port, socket.socket(socket.AF_UNIX) as bets:
        port.bind(("127.0.0.1", 0))
        bets.bind(str(path))
        for listening in (port, bets):
            listening.listen()
        script = (
            "import fcntl, os, sys\n"
            f"port = fcntl.fcntl({port.fileno()}, fcntl.F_DUPFD, 10)\n"
            f"bets = fcntl.fcntl({bets.fileno()}, fcntl.F_DUPFD, 10)\n"
            "os.dup2(port, 3)\n"
            "os.dup2(bets, 4)\n"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2')\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'tap_trading.services.api'])\n"
        )
        process = subprocess.Popen(
            python("-c", script),
            env=process_environment({**environment, "TAP_API_LISTEN": "127.0.0.1:1"}),
            pass_fds=[port.fileno(), bets.fileno()],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            await healthy(port.getsockname()[1])
            async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as site:
                # The second goes the ordinary way.
                for extra in ({}, {"TE": "trailers"}):
                    async with site.post("http://x/api/bets", json={}, headers=extra) as answer:
                        assert answer.status == 401
                        assert (await answer.json())["code"] == "unauthenticated"
        finally:
            process.send_signal(signal.SIGTERM)
            assert (await asyncio.to_thread(end, process))[0] == 0


def test_wrong_configuration_is_one_sentence() -> None:
    assert "TAP_NOPE is not a setting" in refused("api", {"TAP_NOPE": "1"}, 78)
    assert "TAP_REPLAY_SPEED='fast'" in refused("price", {"TAP_REPLAY_SPEED": "fast"}, 78)


def test_a_busy_port_is_one_sentence(environment: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        sentence = refused("ws", {**environment, "TAP_WS_LISTEN": f"127.0.0.1:{port}"}, 69)
    assert sentence.startswith(f"127.0.0.1:{port} is in use")


@pytest.mark.parametrize("service", ["api", "ws", "price"])
def test_a_missing_redis_is_one_sentence(
    service: str, environment: dict[str, str], tmp_path: Path
) -> None:
    settings = environment | {
        "REDIS_ADDR": str(tmp_path / "none.sock"),
        "TAP_REDIS_WAIT_S": "0.2",
        f"TAP_{service.upper()}_LISTEN": f"127.0.0.1:{free_port()}",
    }
    assert "does not answer after 0.2 s" in refused(service, settings, 69)


def test_a_missing_or_old_database_is_one_sentence(
    environment: dict[str, str], tmp_path: Path
) -> None:
    settings = {**environment, "TAP_API_LISTEN": f"127.0.0.1:{free_port()}"}
    assert "create it with: tap migrate" in refused(
        "api", {**settings, "DB_PATH": str(tmp_path / "none.db")}, 69
    )


def test_a_held_database_is_one_sentence(environment: dict[str, str], database: Path) -> None:
    settings = {**environment, "TAP_API_LISTEN": f"127.0.0.1:{free_port()}"}
    lock = WriterLock(database)
    with lock.held():
        code, lines = end(start("api", settings))
    lock.close()
    assert code == 69
    assert lines[-1]["level"] == "critical"
    assert "another process has held" in str(lines[-1]["error"])
    assert all(line["component"] == "api" for line in lines)


def test_tap_migrate_on_nonsense_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bets.db").write_bytes(b"no database, whatever its name says" * 200)
    settings = {name: str(tmp_path / "bets.db") for name in ("DB_PATH", "PRICES_DB_PATH")}
    done = tap(settings, "migrate")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_a_missing_recording_is_one_sentence(environment: dict[str, str]) -> None:
    settings = {
        **environment,
        "TAP_PRICE_LISTEN": f"127.0.0.1:{free_port()}",
        "TAP_PRICE_SOURCE": "replay",
        "TAP_REPLAY_FILE": "/nowhere/trades.csv",
    }
    assert "/nowhere/trades.csv: No such file" in refused("price", settings, 69)


def tap(settings: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        python("-m", "tap_trading.cli.main", *words),
        env=process_environment(settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


async def test_tap_health_tells_each_service(environment: dict[str, str]) -> None:
    port = free_port()
    settings = {
        **environment,
        "TAP_API_LISTEN": f"127.0.0.1:{port}",
        "TAP_WS_LISTEN": f"127.0.0.1:{free_port()}",
        "TAP_PRICE_LISTEN": f"127.0.0.1:{free_port()}",
        "TAP_RESOLVER_LISTEN": f"127.0.0.1:{free_port()}",
    }
    process = start("api", settings)
    try:
        await healthy(port)
        done = await asyncio.to_thread(tap, settings, "health")
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(end, process)
    assert done.returncode == 1
    first, *others = done.stdout.splitlines()
    assert first.startswith("api       ok (sqlite: ok")
    for name, line in zip(("ws", "price", "resolver"), others, strict=True):
        assert line.startswith(f"{name:<9} does not answer")


def test_tap_migrates_once_and_backs_up(tmp_path: Path) -> None:
    settings = {
        "DB_PATH": str(tmp_path / "bets.db"),
        "PRICES_DB_PATH": str(tmp_path / "prices.db"),
    }
    there_are = len(migrations.available()) + len(price_store.available())
    assert tap(settings, "migrate").stdout.count("applied ") == there_are
    assert tap(settings, "migrate").stdout == "the schema is up to date\n"
    done = tap(settings, "backup", "--dest", str(tmp_path / "copies"), "--keep", "2")
    assert done.returncode == 0
    assert "checked" in done.stdout
    assert len(list((tmp_path / "copies").iterdir())) == 1


def test_tap_says_what_is_wrong(tmp_path: Path) -> None:
    done = tap({"DB_PATH": str(tmp_path / "no.db")}, "backup", "--dest", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "there is no such database" in done.stderr
    assert tap({"TAP_X": "1"}, "version").returncode == 78
    assert tap({}, "backup", "--keep", "0").returncode == 2
    assert tap({}).returncode == 2


def test_tap_shows_settings_and_version() -> None:
    shown = tap({"TAP_STAKES": "100,200"}, "settings").stdout.splitlines()
    assert "TAP_STAKES=100,200" in shown
    assert "TAP_MOCK_SEED=1" in shown
    assert "TAP_REPLAY_FILE=" in shown
    assert "python_version: 3." in tap({}, "version").stdout


async def test_ws_and_price_live_through_a_redis_restart(
    environment: dict[str, str], redis_server: RedisServer
) -> None:
    port = free_port()
    process = start("price", {**environment, "TAP_PRICE_LISTEN": f"127.0.0.1:{port}"})
    try:
        await healthy(port)
        redis_server.stop()
        await asyncio.sleep(0.5)
        redis_server.start()
        await healthy(port)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        code, _ = await asyncio.to_thread(end, process)
        assert code == 0
