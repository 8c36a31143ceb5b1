"""The archives that are on this machine: `bets_<year>_w<week>.db`, read-only."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from tap_trading.archive.weeks import Week
from tap_trading.base.db import DatabaseError, open_reader

_NAME = re.compile(r"bets_(\d{4}_w\d{2})\.db")


class Shelf:
    """A folder of archives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, week: Week) -> Path:
        """Where the archive of a week is, or would be."""
        return self.folder / f"bets_{week.name}.db"

    def weeks(self) -> list[Week]:
        """The weeks that are here, the newest first; none where there is no folder.

        Raises DatabaseError.
        """
        try:
            names = [match[1] for path in self.folder.iterdir()
                     if (match := _NAME.fullmatch(path.name))]  # fmt: skip
            return sorted(map(Week.parse, names), reverse=True)
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise DatabaseError(f"{self.folder}: {error}") from error

    @contextmanager
    def open(self, week: Week) -> Iterator[apsw.Connection]:
        """The archive of a week, for reading. Raises DatabaseError."""
        path = self.path(week)
        connection = open_reader(path)
        try:
            yield connection
        except apsw.Error as error:
            raise DatabaseError(f"{path}: {error}") from error
        finally:
            connection.close()
