"""The schema of the books: the migrations of `schema/` beside this module."""

from collections.abc import Sequence
from pathlib import Path

from tap_trading.base import migrations
from tap_trading.base.db import ReaderPool
from tap_trading.base.migrations import Migration


def available() -> list[Migration]:
    """The migrations this release carries, in order: 1, 2, 3 and so on."""
    return migrations.available("tap_trading.ledger")


def migrate(path: Path, wanted: Sequence[Migration] | None = None) -> list[Migration]:
    """Bring the books at `path` up to date, creating them if need be.

    Returns what was applied now. Raises DatabaseError.
    """
    return migrations.migrate(path, available() if wanted is None else wanted)


async def check_schema(readers: ReaderPool) -> int:
    """The books' schema version. Raises DatabaseError when this release needs a newer one."""
    return await migrations.check_schema(readers, available())
