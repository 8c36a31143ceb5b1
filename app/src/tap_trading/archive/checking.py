"""Proof that an archive has all of its week, before anything of that is deleted elsewhere."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import apsw

from tap_trading.archive.errors import ArchiveError
from tap_trading.archive.plan import BELONGS, Cut
from tap_trading.base.db import DatabaseError, open_reader
from tap_trading.base.files import sha256_of
from tap_trading.ledger.audit import audit

_AT_ONCE = 20_000

# A piece of each table, in the order of its rows.
_ENTRIES = (
    "SELECT rowid, * FROM transaction_ledger WHERE rowid > :after ORDER BY rowid LIMIT :limit"
)
_ENTRIES_OF_BOOKS = """
SELECT rowid, * FROM transaction_ledger
WHERE rowid > :after AND rowid <= :entries ORDER BY rowid LIMIT :limit
"""
_BETS = "SELECT rowid, * FROM bets WHERE rowid > :after ORDER BY rowid LIMIT :limit"
_BETS_OF_BOOKS = """
SELECT rowid, * FROM bets b
WHERE b.rowid > :after AND {belongs} ORDER BY rowid LIMIT :limit
"""


@dataclass(frozen=True, slots=True)
class Checked:
    """An archive that is as it has to be."""

    bets: int
    entries: int
    size: int  # bytes
    sha256: str


def check(archive: Path) -> Checked:
    """Check that a file is whole: every page, and its ledger by the audit.

    Raises ArchiveError.
    """
    try:
        with contextlib.closing(open_reader(archive)) as connection:
            verdict = connection.pragma("integrity_check")
            if verdict != "ok":
                raise ArchiveError(f"{archive} failed its integrity check: {verdict}")
            report = audit(connection)
    except (apsw.Error, DatabaseError) as error:
        raise ArchiveError(f"{archive}: {error}") from error
    if not report.clean:
        raise ArchiveError(
            f"{archive} failed its audit (findings: {report.found}), the first:"
            f" {report.findings[0]}; see all with: tap audit --database {archive}"
        )
    return Checked(report.bets, report.entries, archive.stat().st_size, sha256_of(archive))


def compare(archive: Path, cut: Cut, books: Path) -> None:
    """Check that the archive has every bet and entry of its week as the books have them, and
    nothing else. Raises ArchiveError.
    """
    belongs = BELONGS.format(schema="main")
    try:
        with (
            contextlib.closing(open_reader(archive)) as ours,
            contextlib.closing(open_reader(books)) as theirs,
        ):
            for what, mine, wanted in (
                ("entries", _ENTRIES, _ENTRIES_OF_BOOKS),
                ("bets", _BETS, _BETS_OF_BOOKS.format(belongs=belongs)),
            ):
                _same(archive, what, (ours, mine), (theirs, wanted), cut)
    except (apsw.Error, DatabaseError) as error:
        raise ArchiveError(f"{archive}: {error}") from error


def _same(
    archive: Path,
    what: str,
    ours: tuple[apsw.Connection, str],
    theirs: tuple[apsw.Connection, str],
    cut: Cut,
) -> None:
    after = 0
    while True:
        parameters = {**cut.parameters, "after": after, "limit": _AT_ONCE}
        mine, wanted = (
            connection.execute(statement, parameters).fetchall()
            for connection, statement in (ours, theirs)
        )
        if mine != wanted:
            raise ArchiveError(
                f"{archive} has not the {what} that the books have behind row {after};"
                " remove it, and it is made anew"
            )
        if not mine:
            return
        after = int(mine[-1][0] or 0)
