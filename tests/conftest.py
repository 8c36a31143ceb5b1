"""Real parts for the tests: a Redis of their own, database files, running services."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import object_storage
from market_days import BEGIN, Tape, Traders
from object_storage import Storage
from tap_trading.base.config import Address
from tap_trading.base.db import open_reader
from tap_trading.base.redis import Redis, connect
from tap_trading.ledger import migrations
from tap_trading.ledger.audit import audit
from tap_trading.market import price_store

ROOT = Path(__file__).resolve().parent.parent

#: Modules and tests that damage the books or write rows by hand: their `database` is not
#: audited. What is new says so itself, with `@pytest.mark.damaged_books`.
DAMAGED_BOOKS = frozenset(
    {
        "test_audit.py",
        "test_migrations.py",
        "test_queries.py",
        "test_a_broken_database_is_not_backed_up",
        "test_the_ledger_comes_in_pages_too",
        "test_a_settled_bet_shows_rate_payout_and_times",
        "test_a_status_selects",
    }
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if DAMAGED_BOOKS & {item.path.name, item.name.partition("[")[0]}:
            item.add_marker("damaged_books")


class RedisServer:
    """A redis-server that this test run started; it can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "redis.sock"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = shutil.which("redis-server")
        assert program, "redis-server is missing: scripts/prerequisites.sh redis"
        self._process = subprocess.Popen(
            [
                program,
                *("--port", "0", "--unixsocket", str(self.path), "--save", ""),
                *("--dir", str(self._folder), "--maxmemory-policy", "allkeys-lru"),
            ],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        while not self.path.exists():
            assert time.monotonic() < deadline, "redis-server did not start"
            time.sleep(0.01)

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.path.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def _redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(_redis_server: RedisServer) -> RedisServer:
    """A running, empty Redis."""
    if not _redis_server.path.exists():
        _redis_server.start()
    program = shutil.which("redis-cli")
    assert program
    subprocess.run(
        [program, "-s", str(_redis_server.path), "flushall"], check=True, capture_output=True
    )
    return _redis_server


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """A client of the empty Redis."""
    client = connect(Address(path=str(redis_server.path)))
    yield client
    await client.aclose()


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A migrated database file; its books must be whole when the test is over.

    A test that leaves them wrong on purpose says so: `@pytest.mark.damaged_books`.
    """
    path = tmp_path / "bets.db"
    migrations.migrate(path)
    yield path
    if request.node.get_closest_marker("damaged_books") is None:
        connection = open_reader(path)
        try:
            assert audit(connection).findings == ()
        finally:
            connection.close()


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    """A migrated price database without a bar."""
    path = tmp_path / "prices.db"
    price_store.migrate(path)
    return path


@pytest.fixture
def tape(prices: Path) -> Iterator[Tape]:
    """Writes the bars of a test's market."""
    tape = Tape(prices, BEGIN)
    yield tape
    tape.close()


@pytest.fixture
def traders(database: Path) -> Iterator[Traders]:
    """Users with money who bet straight into the books."""
    traders = Traders(database)
    yield traders
    traders.close()


@pytest.fixture
def environment(redis_server: RedisServer, database: Path, prices: Path) -> dict[str, str]:
    """Settings of services that use this test's Redis and databases."""
    return {
        "REDIS_ADDR": f"unix:{redis_server.path}",
        "DB_PATH": str(database),
        "PRICES_DB_PATH": str(prices),
        "TAP_ARCHIVE_DIR": str(database.parent / "archive"),
        "TAP_DISK_FULL_PERCENT": "100",  # however full the disk is that tests run on
    }


@pytest.fixture(scope="session")
def _storage() -> Iterator[Storage]:
    with object_storage.running() as storage:
        yield storage


@pytest.fixture
def storage(_storage: Storage) -> Storage:
    """A real S3 API on loopback, with one empty bucket."""
    _storage.empty()
    return _storage


@pytest.fixture
def market_data() -> Path:
    """The folder of recorded market data; without it the test is skipped, loudly."""
    folder = os.environ.get("TAP_MARKET_DATA")
    if not folder:
        pytest.skip("TAP_MARKET_DATA is not set: recorded market data was NOT tested")
    return Path(folder)


def process_environment(settings: dict[str, str]) -> dict[str, str]:
    """What a service started by a test finds in its environment, and nothing else."""
    kept = ("PATH", "HOME", "LANG", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")
    inherited = {name: os.environ[name] for name in kept if name in os.environ}
    return {
        **inherited,
        "PYTHONPATH": str(ROOT / "app" / "src"),
        "PYTHONUNBUFFERED": "1",
    } | settings


def python(*args: str) -> list[str]:
    """A command line of this Python."""
    return [sys.executable, "-W", "error", *args]
