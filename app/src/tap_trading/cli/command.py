"""What the commands of `tap` share: how they are added, how they refuse, how they read."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import apsw

from tap_trading.base.config import Settings
from tap_trading.base.db import DatabaseError, open_reader

#: Does the command; its exit code.
Run = Callable[[Settings, argparse.Namespace], int]


class Add(Protocol):
    """Adds a command to a parser."""

    def __call__(self, name: str, run: Run, help_: str) -> argparse.ArgumentParser:
        """The command's own parser, for its arguments."""
        ...


class RefusedError(Exception):
    """The command cannot do what it was asked; the text is the one sentence that says why."""


def adder(parser: argparse.ArgumentParser, dest: str, metavar: str) -> Add:
    """What adds commands to `parser`, one of which has to be given."""
    commands = parser.add_subparsers(dest=dest, required=True, metavar=metavar)

    def add(name: str, run: Run, help_: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_, description=help_)
        command.set_defaults(run=run)
        return command

    return add


@contextmanager
def books(path: Path) -> Iterator[apsw.Connection]:
    """The database as it is at one moment, for reading. Raises DatabaseError."""
    connection = open_reader(path)
    try:
        connection.execute("BEGIN")
        yield connection
    except apsw.Error as error:
        raise DatabaseError(f"{path}: {error} (is the schema up to date? tap migrate)") from error
    finally:
        connection.close()
