#!/usr/bin/env python3
"""Runs the site on this host, without a VM: `make dev`.

Scratch databases and a Redis in a folder of their own, the services on free ports, and
in front of them one origin for the page, /api/ and /ws (dev_front.py). Ctrl-C ends everything.

Every setting of the services (docs/settings.md) is taken from the environment, but for
where they listen, the databases and Redis.
"""

import argparse
import asyncio
import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path

import aiohttp
import dev_front

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "app" / "src"))

from tap_trading.base import config

ROOT = Path(__file__).resolve().parents[1]
SERVICES = ("api", "ws", "price", "resolver")
#: What decides the places of the scratch site, whatever the environment says.
OWN_SETTINGS = (
    *("DB_PATH", "PRICES_DB_PATH", "REDIS_ADDR"),
    *(f"TAP_{name.upper()}_LISTEN" for name in SERVICES),
)
#: Variables of scripts/vm.sh; every other unknown TAP_… is a mistake worth a sentence.
VM_PREFIX = "TAP_VM_"

START_S = 30.0
#: A service gets 6 s for its last requests.
END_S = 9.0
#: Bytes a path of a Unix socket may have.
LONGEST_SOCKET_PATH = 107
#: Should this program be killed, its children end as well.
WITH_PARENT = ("setpriv", "--pdeathsig", "TERM") if shutil.which("setpriv") else ()


class DevError(Exception):
    """The site cannot run; the text says why."""


def say(component: str, message: str, level: str = "-") -> None:
    """A line in the same columns as the services' own."""
    now = datetime.now(UTC).strftime("%H:%M:%S.%f")[:-3]
    print(f"{now} {level:<8} {component:<6} {message}", flush=True)


def readable(component: str, line: str) -> str | None:
    """A JSON log line as `time level component message key=value …`; None for any other line."""
    try:
        said = json.loads(line)
        when = datetime.fromisoformat(said.pop("time")).strftime("%H:%M:%S.%f")[:-3]
        level, message = said.pop("level"), said.pop("message")
        component = said.pop("component", component)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    trace = said.pop("exception", "")
    rest = "".join(f" {key}={_shown(value)}" for key, value in said.items())
    head = f"{when} {level:<8} {component:<6} {message}{rest}"
    return "\n    ".join([head, *str(trace).splitlines()])


def _shown(value: object) -> str:
    if isinstance(value, str) and value and not any(c.isspace() or c in "\"'=" for c in value):
        return value
    return json.dumps(value, ensure_ascii=False)


class Children:
    """The processes of the site. The first that ends ends all."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._relays: dict[str, asyncio.Task[None]] = {}

    async def start(self, name: str, *command: str, environment: Mapping[str, str]) -> None:
        """Start a process in a session of its own: Ctrl-C reaches this program alone."""
        process = await asyncio.create_subprocess_exec(
            *WITH_PARENT,
            *command,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=1 << 20,
        )
        self._running[name] = process
        self._relays[name] = asyncio.create_task(self._relay(name, process))

    async def _relay(self, name: str, process: asyncio.subprocess.Process) -> None:
        assert process.stdout  # noqa: S101  (it is a pipe, as asked for)
        async for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip()
            if (text := readable(name, line)) is not None:
                print(text, flush=True)
            elif line:
                say(name, line)

    async def finished(self, name: str) -> int:
        """Wait for the end of a process that is meant to end; its exit code."""
        code = await self._running[name].wait()
        await self._relays[name]
        del self._running[name]
        return code

    async def first_ended(self) -> str:
        """Wait until a process ends by itself; the words for it."""
        waits = {
            asyncio.create_task(process.wait()): name for name, process in self._running.items()
        }
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        name = waits[done.pop()]
        return f"{name} ended with exit code {self._running[name].returncode}, so everything ends"

    async def end(self, *, last: str = "redis") -> None:
        """End all of them, `last` after the others; whoever takes too long is killed."""
        others = [name for name in self._running if name != last]
        for names in (others, [name for name in self._running if name == last]):
            await asyncio.gather(*(self._end(name) for name in names))
        await asyncio.gather(*self._relays.values())

    async def _end(self, name: str) -> None:
        process = self._running[name]
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), END_S)
        except TimeoutError:
            say(name, f"did not end within {END_S:g} s and is killed")
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _bound_to(port: int) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        listening.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise DevError(
                f"127.0.0.1:{port} is in use; stop what listens there (ss -ltnp) or choose "
                "another port: scripts/dev.py --port PORT"
            ) from error
        raise DevError(f"cannot listen on 127.0.0.1:{port}: {error}") from error
    return listening


def _free_ports() -> dict[str, int]:
    """A port for each service, so that neither a local VM nor another checkout is in the way."""
    with contextlib.ExitStack() as stack:
        sockets = {name: stack.enter_context(_bound_to(0)) for name in SERVICES}
        return {name: sock.getsockname()[1] for name, sock in sockets.items()}


@contextmanager
def _own(folder: Path) -> Iterator[Path]:
    """The folder, for this process alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise DevError(f"cannot use the folder {folder}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DevError(
                f"another one runs in {folder}; end it or choose another folder and port: "
                "scripts/dev.py --folder FOLDER --port PORT"
            ) from None
        yield folder


def given_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The settings for the services that the environment holds. Raises DevError."""
    ours = {
        name: value
        for name, value in environ.items()
        if (name in config.SETTING_NAMES or name.startswith("TAP_"))
        and name not in OWN_SETTINGS
        and not name.startswith(VM_PREFIX)
    }
    try:
        config.load(ours)
    except config.ConfigError as error:
        raise DevError(str(error)) from error
    return ours


def _environment(folder: Path, site: str, ports: Mapping[str, int]) -> dict[str, str]:
    """What the processes find in their environment; `site` is the page's host and port."""
    others = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TAP_") and name not in (*config.SETTING_NAMES, "NOTIFY_SOCKET")
    }
    return {
        **others,
        # What wallets are shown, unless the environment says something else.
        "TAP_SITE_DOMAIN": site,
        "TAP_SITE_URI": f"http://{site}",
        **given_settings(os.environ),
        **{f"TAP_{name.upper()}_LISTEN": f"127.0.0.1:{port}" for name, port in ports.items()},
        "DB_PATH": str(folder / "bets.db"),
        "PRICES_DB_PATH": str(folder / "prices.db"),
        "REDIS_ADDR": f"unix:{folder / 'redis.sock'}",
        "PYTHONPATH": str(ROOT / "app" / "src"),
        "PYTHONUNBUFFERED": "1",
    }


async def _until_healthy(ports: Mapping[str, int]) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3)) as session:
        for port in ports.values():
            while True:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(f"http://127.0.0.1:{port}/healthz") as answer:
                        if answer.status == HTTPStatus.OK:
                            break
                await asyncio.sleep(0.05)


async def _while_all_run(children: Children, work: asyncio.Task[None] | None) -> None:
    """Wait for `work`, or for ever. Raises DevError when a process ends meanwhile."""
    ended = asyncio.create_task(children.first_ended())
    both = {ended} | ({work} if work else set())
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            raise DevError(ended.result())
        if work:
            await work
    finally:
        for task in both:
            task.cancel()


async def run(port: int, folder: Path) -> None:
    """Run the site until this task is cancelled. Raises DevError."""
    given_settings(os.environ)
    redis = shutil.which("redis-server")
    if redis is None:
        raise DevError("redis-server is missing; install it: apt-get install redis-server")
    if len(str(folder / "redis.sock").encode()) > LONGEST_SOCKET_PATH:
        raise DevError(f"{folder} is too long a path for a Unix socket; choose another --folder")
    async with AsyncExitStack() as stack:
        listening = stack.enter_context(_bound_to(port))
        stack.enter_context(_own(folder))
        ports = _free_ports()
        site = f"127.0.0.1:{listening.getsockname()[1]}"
        environment = _environment(folder, site, ports)
        # The front outlives the services: their goodbye still reaches the browsers.
        await stack.enter_async_context(dev_front.serving(listening, ports, say))
        children = Children()
        stack.push_async_callback(children.end)
        await children.start(
            "redis", redis, "--port", "0", "--unixsocket", str(folder / "redis.sock"),
            "--unixsocketperm", "700", "--dir", str(folder), "--save", "", "--appendonly", "no",
            "--maxmemory-policy", "allkeys-lru", "--logfile", str(folder / "redis.log"),
            environment=environment,
        )  # fmt: skip
        python = (sys.executable, "-m")
        await children.start(
            "tap", *python, "tap_trading.cli.main", "migrate", environment=environment
        )
        if await children.finished("tap") != 0:
            raise DevError("the databases could not be migrated; the reason is above")
        for name in SERVICES:
            await children.start(
                name, *python, f"tap_trading.services.{name}", environment=environment
            )
        try:
            async with asyncio.timeout(START_S):
                await _while_all_run(children, asyncio.create_task(_until_healthy(ports)))
        except TimeoutError:
            raise DevError(f"the services are not healthy after {START_S:g} s") from None
        say("dev", f"the site runs at http://{site}/")
        say("dev", f"its databases and Redis's log lie in {folder}; Ctrl-C ends it")
        await _while_all_run(children, None)


async def _main(port: int, folder: Path) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task  # noqa: S101  (a coroutine runs in a task)
    asked_to_end = False

    def end() -> None:
        nonlocal asked_to_end
        if not asked_to_end:
            asked_to_end = True
            say("dev", "ending")
            task.cancel()

    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(name, end)
    with contextlib.suppress(asyncio.CancelledError):
        await run(port, folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Run the site on this host, without a VM.")
    parser.add_argument("--port", type=int, default=8000, help="of the site; default: 8000")
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / ".dev",
        help="of the scratch databases and Redis; default: .dev in the repository",
    )
    args = parser.parse_args()
    try:
        asyncio.run(_main(args.port, args.folder.absolute()))
    except DevError as error:
        sys.exit(f"dev: {error}")


if __name__ == "__main__":
    main()
