"""The life of a service: settings, sockets, start, ready, and a graceful end within 10 s.

A service of the live release accepts what comes to the public sockets. One of another release,
which waits to take over or has been taken over from, leaves them alone, and turns with the link
that says which release is live. Both answer on a private socket in the unit's own runtime
directory, so that a release can prove itself before anybody is sent to it.
"""

import asyncio
import errno
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol, cast

import uvloop
from aiohttp import web

from tap_trading.base import background, config, logger, systemd, version
from tap_trading.base.config import Address, Settings
from tap_trading.base.db import DatabaseError
from tap_trading.base.errors import StartupError
from tap_trading.base.live import NOTICED_WITHIN_S, Live, live_of
from tap_trading.base.redis import RedisError
from tap_trading.ledger.batcher import StorageUnavailableError

#: Exit codes, as sysexits.h has them.
EXIT_CONFIG = 78
EXIT_UNAVAILABLE = 69

#: Connections that may wait to be accepted.
_BACKLOG = 4096
#: After the last connection was accepted, its request still gets this long to arrive, in s.
_LINGER_S = 0.2
#: Requests under way get this long to finish, in s; with the rest it stays under 10.
_FINISH_S = 6.0

#: Where a service answers privately, in the unit's runtime directory.
PRIVATE_SOCKET = "private.sock"

#: What an application may put in front of aiohttp's server for new connections.
ProtocolFactory = Callable[[], asyncio.BaseProtocol]
FRONT: web.AppKey[Callable[[ProtocolFactory], ProtocolFactory]] = web.AppKey("front")


class Drain(Protocol):
    """Says whether answers are to close their connections from now on."""

    def __call__(self, *, draining: bool) -> None: ...


#: Called when the public sockets are left alone, or accepted from again.
DRAIN: web.AppKey[Drain] = web.AppKey("drain")
#: Opens what the service needs, yields its application, closes everything again. The
#: future ends the service when something it cannot live without has failed.
Build = Callable[
    [Settings, "asyncio.Future[BaseException]"], AbstractAsyncContextManager[web.Application]
]


def run(component: str, listen: Callable[[Settings], Address], build: Build) -> None:
    """Run a service until SIGTERM or SIGINT; does not return."""
    logger.configure(component, "info")
    try:
        settings = config.load(os.environ)
    except config.ConfigError as error:
        logger.get().critical("wrong configuration", error=str(error))
        sys.exit(EXIT_CONFIG)
    logger.configure(component, settings.log_level)
    try:
        uvloop.run(_serve(listen(settings), settings, build))
    except (StartupError, DatabaseError, RedisError, StorageUnavailableError) as error:
        logger.get().critical("cannot start", error=str(error))
        sys.exit(EXIT_UNAVAILABLE)
    except BackgroundFailureError as error:
        logger.get().critical("stopped by a failure", error=str(error))
        sys.exit(1)
    sys.exit(0)


class BackgroundFailureError(Exception):
    """Something the service cannot live without has ended; systemd starts it anew."""


def _listening_sockets(address: Address) -> list[socket.socket]:
    """systemd's sockets, else one of our own. Raises StartupError."""
    if inherited := systemd.inherited_sockets():
        return inherited
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((address.host, address.port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise StartupError(
                f"{address} is in use; see who has it with: ss -ltnp 'sport = :{address.port}'"
            ) from error
        raise StartupError(f"cannot listen on {address}: {error.strerror}") from error
    sock.setblocking(False)
    return [sock]


async def _serve(address: Address, settings: Settings, build: Build) -> None:
    log = logger.get()
    loop = asyncio.get_running_loop()
    failed: asyncio.Future[BaseException] = loop.create_future()
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    sockets = _listening_sockets(address)
    try:
        await _serve_on(sockets, settings, build, failed, stop)
    finally:
        for sock in sockets:
            sock.close()
    log.info("stopped")
    if failed.done():
        raise BackgroundFailureError(str(failed.result()))


async def _serve_on(
    sockets: list[socket.socket],
    settings: Settings,
    build: Build,
    failed: asyncio.Future[BaseException],
    stop: asyncio.Event,
) -> None:
    log = logger.get()
    async with build(settings, failed) as app:
        runner = Runner(app, access_log=None, handle_signals=False, shutdown_timeout=_FINISH_S)
        await runner.setup()
        await _listen_privately(runner)
        door = Door(runner, sockets)
        live = live_of(settings.live_link, settings.release_link)
        await door.follow_once(live)
        # What stands now stands for good; the collector need not look through it again.
        gc.collect()
        gc.freeze()
        systemd.notify("READY=1")
        log.info("ready", listen=str(sockets[0].getsockname()), version=version.current().version)
        failed.add_done_callback(lambda _: stop.set())
        async with background.running(door.follow(live), "public sockets", failed):
            await stop.wait()
        systemd.notify("STOPPING=1")
        log.info("stopping")
        await door.close()
        if not failed.done():
            await asyncio.sleep(_LINGER_S)
        await runner.cleanup()


def _private_socket() -> Path | None:
    """Where to answer privately, free to listen on; None without a unit that has a place for it."""
    if not (folder := os.environ.get("RUNTIME_DIRECTORY")):
        return None
    path = Path(folder, PRIVATE_SOCKET)
    path.unlink(missing_ok=True)  # of a process before, which was killed
    return path


async def _listen_privately(runner: web.AppRunner) -> None:
    """Answer on the private socket, if there is one. Raises StartupError."""
    path = _private_socket()
    if path is None:
        return
    try:
        await web.UnixSite(runner, path).start()
    except OSError as error:
        raise StartupError(f"cannot listen on {path}: {error.strerror}") from error


class Door:
    """The public sockets, which two releases may share: the live one accepts from them."""

    def __init__(self, runner: web.AppRunner, sockets: Sequence[socket.socket]) -> None:
        self._runner = runner
        self._sockets = sockets
        self._sites: list[web.SockSite] = []

    async def follow(self, live: Live) -> None:
        """Open and close with the link, for ever."""
        while True:
            await self.follow_once(live)
            await asyncio.sleep(NOTICED_WITHIN_S)

    async def follow_once(self, live: Live) -> None:
        """Open or close, if the link was moved."""
        if live():
            await self.open()
        elif self._sites:
            logger.get().info("another release is live: accepting no more connections")
            await self.close()

    async def open(self) -> None:
        """Accept connections from now on."""
        if self._sites:
            return
        # Closing a site closes its socket; these are needed again, should we be live again.
        sites = [web.SockSite(self._runner, sock.dup(), backlog=_BACKLOG) for sock in self._sockets]
        for site in sites:
            await site.start()
        self._sites = sites
        self._drain(draining=False)

    async def close(self) -> None:
        """Accept no more; every connection there is ends with its next answer."""
        sites, self._sites = self._sites, []
        for site in sites:
            await site.stop()
        self._drain(draining=True)

    def _drain(self, *, draining: bool) -> None:
        if DRAIN in self._runner.app:
            self._runner.app[DRAIN](draining=draining)


class Runner(web.AppRunner):
    """aiohttp's runner, but new connections begin at the application's front, if it has one."""

    @property
    def server(self) -> web.Server | None:
        """What makes the protocol of a new connection."""
        server = super().server
        if server is None or FRONT not in self.app:
            return server
        return cast("web.Server", self.app[FRONT](server))
