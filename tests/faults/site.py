"""An API as a process on a listening socket that outlives it, with a live price and users
who are signed in already.
"""

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import process_environment, python

import live_market
from live_market import keep_market
from tap_trading.auth.sessions import Sessions
from tap_trading.base import background
from tap_trading.base.clock import system_clock
from tap_trading.base.db import WriterLock, open_reader, open_writer
from tap_trading.base.redis import Redis
from tap_trading.game import grid
from tap_trading.ledger import accounts
from tap_trading.ledger.audit import audit

STAKES = (100, 500, 1000)
#: Columns that stay placeable for hours, and a cell for each of a user's bets.
GEOMETRY = grid.Geometry(width_s=3600, columns=100, rows=200)

#: As systemd does it: the listening socket is file descriptor 3 of the process.
_HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
_API = ("-m", "tap_trading.services.api")


class Api:
    """The API, to be started and killed again and again."""

    def __init__(
        self, environment: dict[str, str], log: Path, program: tuple[str, ...] = _API
    ) -> None:
        self._program = program
        self._log = log
        self._settings = environment | {
            "TAP_API_LISTEN": "127.0.0.1:1",  # not used: the socket is inherited
            "TAP_GRID_WIDTH_S": str(GEOMETRY.width_s),
            "TAP_STAKES": ",".join(map(str, STAKES)),
            "TAP_WALLET_RATE": "1000000",
            "TAP_MAX_OPEN_STAKE": str(10**12),
            "TAP_MAX_CELL_STAKE": str(10**12),
            "TAP_MAX_COLUMN_STAKE": str(10**12),
        }
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(512)
        self.port = int(self._socket.getsockname()[1])
        self.killed = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def start(self) -> None:
        fd = self._socket.fileno()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                python("-c", _HAND_OVER, str(fd), *self._program),
                env=process_environment(self._settings),
                pass_fds=[fd],
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """SIGKILL; whoever is connected hears it at once."""
        assert self._process
        self._process.kill()
        self._process.wait()
        self._process = None
        self.killed += 1

    def ended(self) -> bool:
        """Whether it has ended on its own."""
        return self._process is not None and self._process.poll() is not None

    def log(self) -> str:
        """What it said, all its lives together."""
        return self._log.read_text()

    def close(self) -> None:
        """End it for good."""
        if self._process:
            self._process.kill()
            self._process.wait()
        self._socket.close()


@dataclass(frozen=True)
class User:
    """A user who is signed in."""

    user_id: str
    token: str


async def sign_in(database: Path, redis: Redis, balances: list[int]) -> list[User]:
    """A new user for each balance (cents)."""
    lock, connection, now = WriterLock(database), open_writer(database), system_clock()
    with lock.held():
        connection.execute("BEGIN IMMEDIATE")
        found = [
            accounts.open_account(connection, f"wallet-{now}-{number}", now, balance)
            for number, balance in enumerate(balances)
        ]
        connection.execute("COMMIT")
        connection.close()
    lock.close()
    sessions = Sessions(redis, system_clock)
    return [
        User(account.user_id, (await sessions.open(account.user_id, account.address))[0])
        for account in found
    ]


@asynccontextmanager
async def live_price(redis: Redis) -> AsyncIterator[None]:
    """Inside the block a price is published, also to services that start meanwhile."""
    ticking = asyncio.create_task(keep_market(redis, GEOMETRY, offers_every_s=0.5))
    yield
    await background.end(ticking)


def offered_cells() -> list[str]:
    """Cells that can be bet on for the next hours, whenever this hour ends."""
    return [cell.cell_id for cell in live_market.cells(GEOMETRY)[3 * GEOMETRY.rows :]]


def audited(database: Path) -> tuple[str, ...]:
    """What the audit finds in the books."""
    connection = open_reader(database)
    try:
        return audit(connection).findings
    finally:
        connection.close()
