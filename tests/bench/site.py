"""What the benchmarks of this host run against: processes, a Redis and a database of their
own, and wallets that are signed in already.
"""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from aiohttp import ClientSession

from tap_trading.auth.sessions import Sessions
from tap_trading.base.clock import system_clock
from tap_trading.base.config import Address
from tap_trading.base.db import WriterLock, open_reader, open_writer
from tap_trading.base.redis import Redis, connect
from tap_trading.ledger import accounts, audit, migrations
from tap_trading.market import price_store


def free_port() -> int:
    """A TCP port that nobody uses at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def process(
    *command: str, core: int | None = None, **settings: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A server of this benchmark's own, ended with the block; `core` pins it to one."""
    if core is not None:
        command = ("taskset", "--cpu-list", str(core), *command)
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH")} | settings
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as server:
        try:
            yield server
        finally:
            server.terminate()


async def wait_for(port: int) -> None:
    """Wait until something listens."""
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


async def wait_for_market(port: int) -> None:
    """Wait until the API there takes bets."""
    async with asyncio.timeout(20), ClientSession() as session:
        while True:
            async with session.get(f"http://127.0.0.1:{port}/api/market") as answer:
                if (await answer.json())["cells"]:
                    return
            await asyncio.sleep(0.05)


@asynccontextmanager
async def scratch_site() -> AsyncIterator[tuple[dict[str, str], Redis]]:
    """A Redis and a database of the benchmark's own."""
    program = shutil.which("redis-server")
    if program is None:
        sys.exit("bench: redis-server is missing; install it: apt-get install redis-server")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/redis.sock"
        migrations.migrate(Path(folder, "bets.db"))
        price_store.migrate(Path(folder, "prices.db"))
        with process(program, "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder):
            while not Path(path).exists():
                await asyncio.sleep(0.02)
            redis = connect(Address(path=path))
            settings = {
                "REDIS_ADDR": path,
                "DB_PATH": f"{folder}/bets.db",
                "PRICES_DB_PATH": f"{folder}/prices.db",
                "LOG_LEVEL": "warning",
            }
            yield settings, redis
            await redis.aclose()


async def sign_in(database: Path, redis: Redis, users: int, balance: int) -> list[str]:
    """So many users with this balance in cents; returns a session's token of each."""
    lock, connection, now = WriterLock(database), open_writer(database), system_clock()
    with lock.held():
        connection.execute("BEGIN IMMEDIATE")
        found = [
            accounts.open_account(connection, f"bench-{now}-{n}", now, balance)
            for n in range(users)
        ]
        connection.execute("COMMIT")
        connection.close()
    lock.close()
    sessions = Sessions(redis, system_clock)
    return [(await sessions.open(user.user_id, user.address))[0] for user in found]


def audited(database: Path) -> str:
    """What the audit says of the books after a run; ends the benchmark when they are wrong."""
    connection = open_reader(database)
    report = audit.audit(connection)
    connection.close()
    if report.findings:
        sys.exit(f"bench: the books are wrong: {report.findings[:3]}")
    return f"books exact over {report.entries} entries"
