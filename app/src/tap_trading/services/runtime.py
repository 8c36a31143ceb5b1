"""The life of a service: settings, sockets, start, ready, and a graceful end within 10 s."""

import asyncio
import errno
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import cast

import uvloop
from aiohttp import web

from tap_trading.base import config, logger, systemd, version
from tap_trading.base.config import Address, Settings
from tap_trading.base.db import DatabaseError
from tap_trading.base.errors import StartupError
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

#: What an application may put in front of aiohttp's server for new connections.
ProtocolFactory = Callable[[], asyncio.BaseProtocol]
FRONT: web.AppKey[Callable[[ProtocolFactory], ProtocolFactory]] = web.AppKey("front")
#: Called when the service begins to stop: from now on answers close their connections.
DRAIN: web.AppKey[Callable[[], None]] = web.AppKey("drain")
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
        sites = [web.SockSite(runner, sock, backlog=_BACKLOG) for sock in sockets]
        for site in sites:
            await site.start()
        # What stands now stands for good; the collector need not look through it again.
        gc.collect()
        gc.freeze()
        systemd.notify("READY=1")
        log.info("ready", listen=str(sockets[0].getsockname()), version=version.current().version)
        failed.add_done_callback(lambda _: stop.set())
        await stop.wait()
        systemd.notify("STOPPING=1")
        log.info("stopping")
        for site in sites:
            await site.stop()
        if DRAIN in app:
            app[DRAIN]()
        if not failed.done():
            await asyncio.sleep(_LINGER_S)
        await runner.cleanup()


class Runner(web.AppRunner):
    """aiohttp's runner, but new connections begin at the application's front, if it has one."""

    @property
    def server(self) -> web.Server | None:
        """What makes the protocol of a new connection."""
        server = super().server
        if server is None or FRONT not in self.app:
            return server
        return cast("web.Server", self.app[FRONT](server))
