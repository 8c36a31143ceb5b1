"""Schema migrations: ordered SQL files, each applied once, in its own transaction with
its record. Expand only: an older release keeps working on a newer schema.

The files are `schema/NNN_name.sql` in the package whose database it is. A file that was
applied must never change; its checksum is compared.
"""

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import apsw

from tap_trading.base.db import DatabaseError, ReaderPool, WriterLock, open_reader, open_writer

_FILE_NAME = re.compile(r"(\d{3})_[a-z0-9_]+\.sql")

_RECORDS = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    applied_at INTEGER NOT NULL  -- Unix ms
) STRICT
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """Checksum of the SQL."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def available(package: str) -> list[Migration]:
    """The migrations that a package carries for its database, in order: 1, 2, 3 and so on.

    Raises DatabaseError when they are not numbered so.
    """
    files = resources.files(package).joinpath("schema").iterdir()
    found = [
        Migration(int(match[1]), file.name, file.read_text("utf-8"))
        for file in files
        if (match := _FILE_NAME.fullmatch(file.name))
    ]
    found.sort(key=lambda migration: migration.version)
    if [m.version for m in found] != list(range(1, len(found) + 1)):
        raise DatabaseError(f"migrations are not numbered 1, 2, 3 …: {[m.name for m in found]}")
    return found


def migrate(path: Path, wanted: Sequence[Migration]) -> list[Migration]:
    """Bring the database at `path` up to date, creating it if need be.

    Returns what was applied now. A failing migration leaves the schema as it was before
    it. Raises DatabaseError.
    """
    lock = WriterLock(path)
    try:
        with lock.held():
            connection = open_writer(path, create=True)
            try:
                return _apply(connection, wanted)
            except apsw.Error as error:
                raise DatabaseError(f"{path}: {error}") from error
            finally:
                connection.close()
    finally:
        lock.close()


def _apply(connection: apsw.Connection, wanted: Sequence[Migration]) -> list[Migration]:
    connection.execute(_RECORDS)
    applied = dict(connection.execute("SELECT version, sha256 FROM schema_migrations"))
    done = []
    for migration in wanted:
        if migration.version in applied:
            if applied[migration.version] != migration.sha256:
                raise DatabaseError(f"{migration.name} was changed after it had been applied")
            continue
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(migration.sql)
            connection.execute(
                "INSERT INTO schema_migrations VALUES (?, ?, ?, ?)",
                (migration.version, migration.name, migration.sha256, time.time_ns() // 10**6),
            )
            connection.execute("COMMIT")
        except apsw.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise DatabaseError(f"{migration.name} failed and changed nothing: {error}") from error
        done.append(migration)
    return done


async def check_schema(readers: ReaderPool, wanted: Sequence[Migration]) -> int:
    """The database's schema version. Raises DatabaseError when it is older than `wanted`."""
    try:
        version = await readers.run(version_of)
    except DatabaseError as error:
        raise DatabaseError(f"no schema in the database ({error}); run: tap migrate") from error
    needed = wanted[-1].version
    if version < needed:
        raise DatabaseError(
            f"the database's schema is {version}, this release needs {needed}; run: tap migrate"
        )
    return version


def version_of(connection: apsw.Connection) -> int:
    """The schema version of a database; 0 when no migration was ever applied."""
    if not connection.table_exists("main", "schema_migrations"):
        return 0
    [[version]] = connection.execute("SELECT coalesce(max(version), 0) FROM schema_migrations")
    return int(version)


def stored_version(path: Path) -> int:
    """The schema version of the database at `path`; 0 when there is none yet.

    Raises DatabaseError when it cannot be read.
    """
    if not path.exists():
        return 0
    connection = open_reader(path)
    try:
        return version_of(connection)
    except apsw.Error as error:
        raise DatabaseError(f"{path}: {error}") from error
    finally:
        connection.close()
