"""What a copy holds, and the proofs that it does: whole pages, books that balance, every row that
was there, and the last thing that had been written.
"""

import json
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import apsw

from tap_trading.base.db import DatabaseError, open_reader
from tap_trading.base.migrations import version_of
from tap_trading.ledger import migrations
from tap_trading.ledger.audit import Report, audit

Name = Literal["bets", "prices"]
NAMES: tuple[Name, ...] = ("bets", "prices")

#: What was written last, for each database: a number that only grows, and the row itself.
_SENTINELS: dict[str, str] = {
    "bets": """
        SELECT (SELECT beats FROM write_probe) + (SELECT coalesce(max(rowid), 0) FROM transaction_ledger),
               'beat ' || (SELECT beats FROM write_probe) || ', entry '
               || coalesce((SELECT id FROM transaction_ledger ORDER BY rowid DESC LIMIT 1), 'none')
        """,
    "prices": """
        SELECT (SELECT bars_until FROM progress),
               'bars until ' || (SELECT bars_until FROM progress) || ', the last '
               || coalesce((SELECT t || ' at ' || close FROM bars ORDER BY t DESC LIMIT 1), 'none')
        """,
}


class UnprovenError(Exception):
    """A copy is not what it should be; the text goes on after its name."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a copy says of itself; its label."""

    database: Name
    taken_at: int  # Unix ms
    schema: int
    size: int  # of the database file, bytes
    rows: dict[str, int]  # by table
    sentinel: str  # what had been written last

    def as_label(self) -> bytes:
        """As it travels with the copy."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_label(cls, label: bytes) -> "Contents":
        """Raises UnprovenError when it is no label of a copy."""
        try:
            found = cls(**json.loads(label))
        except (ValueError, TypeError) as error:
            raise UnprovenError(f"does not say what it holds ({error})") from error
        if found.database not in NAMES or not isinstance(found.rows, dict):
            raise UnprovenError("does not say what it holds")
        return found


def last_written(connection: apsw.Connection, database: Name) -> int:
    """A number that grows with what is written to the database. Raises apsw.Error."""
    [[number, _]] = connection.execute(_SENTINELS[database])
    return int(number)


def contents_of(path: Path, database: Name, taken_at: int) -> Contents:
    """What the database file holds. Raises UnprovenError when it cannot be read."""
    try:
        with closing(open_reader(path)) as connection:
            [[_, sentinel]] = connection.execute(_SENTINELS[database])
            tables = [
                str(name)
                for (name,) in connection.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table'"
                    " AND name NOT LIKE 'sqlite!_%' ESCAPE '!' ORDER BY name"
                ).fetchall()
            ]
            rows = {name: _count(connection, name) for name in tables}
            schema = version_of(connection)
    except (apsw.Error, DatabaseError) as error:
        raise UnprovenError(f"cannot be read: {error}") from error
    return Contents(database, taken_at, schema, path.stat().st_size, rows, str(sentinel))


def _count(connection: apsw.Connection, table: str) -> int:
    # A name of the schema's own, in quotes: nobody outside chooses it.
    question = f'SELECT count(*) FROM "{table}"'  # noqa: S608  # nosec
    [[count]] = connection.execute(question)
    return int(count)


def prove(path: Path, database: Name) -> None:
    """Check every page of the database file, and replay its ledger if it has one.

    Raises UnprovenError.
    """
    try:
        with closing(open_reader(path)) as connection:
            verdict = connection.pragma("integrity_check")
            if verdict != "ok":
                raise UnprovenError(f"failed its integrity check: {verdict}")
            report = _audit(connection, path) if database == "bets" else None
    except (apsw.Error, DatabaseError) as error:
        raise UnprovenError(f"cannot be read: {error}") from error
    if report is not None and not report.clean:
        raise UnprovenError(
            f"failed its audit (findings: {report.found}), the first: {report.findings[0]};"
            " see all with: tap audit"
        )


def _audit(connection: apsw.Connection, path: Path) -> Report:
    """Raises apsw.Error or DatabaseError."""
    if 0 < version_of(connection) < migrations.available()[-1].version:
        return _audit_as_migrated(path)
    return audit(connection)


def _audit_as_migrated(path: Path) -> Report:
    """The audit of books of an older schema, which stay as they are. Raises apsw.Error."""
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            for migration in migrations.available()[version_of(connection) :]:
                connection.execute(migration.sql)
                connection.execute(
                    "INSERT INTO schema_migrations VALUES (?, ?, ?, 0)",
                    (migration.version, migration.name, migration.sha256),
                )
            return audit(connection, inside=True)
        finally:
            connection.execute("ROLLBACK")


def compare(said: Contents, found: Contents) -> None:
    """Raises UnprovenError when a restored copy does not hold what was copied."""
    for table in sorted({*said.rows, *found.rows}):
        ours, theirs = said.rows.get(table), found.rows.get(table)
        if ours != theirs:
            raise UnprovenError(f"has {theirs} rows of {table}, but {ours} were copied")
    for what in ("sentinel", "schema", "size"):
        ours, theirs = getattr(said, what), getattr(found, what)
        if ours != theirs:
            raise UnprovenError(f"has another {what} than was copied: {theirs} instead of {ours}")
