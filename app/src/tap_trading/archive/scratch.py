"""Folders in which copies are made and tried: one process at a time, and room enough."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: What has to stay free beside the copies, in bytes: bets and prices are written meanwhile.
SPARE_BYTES = 256 << 20


class NoScratchError(Exception):
    """There is no folder to work in; the text says why."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Work in `folder`, which is made if need be, while no other process does.

    The kernel gives the folder back with the process. Raises NoScratchError when it is taken,
    and OSError when it cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NoScratchError(
                f"another process is making or trying copies in {folder}"
            ) from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def scratch(folder: Path, prefix: str) -> Iterator[Path]:
    """A new folder inside `folder` for as long as it is needed; those that killed processes left
    are removed. Be alone in `folder`. Raises OSError.
    """
    for left in folder.glob(f"{prefix}*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as made:
        yield Path(made)


def require_room(folder: Path, needed: int) -> None:
    """Raises NoScratchError when `needed` bytes would leave too little for the site."""
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise NoScratchError(
            f"{folder} has {free / 1e6:.0f} MB free, but {(needed + SPARE_BYTES) / 1e6:.0f} MB are"
            " needed"
        )


def size_of(database: Path) -> int:
    """How much of a disk a copy of it may take, in bytes: the database, and what its log adds."""
    files = (database, database.with_name(f"{database.name}-wal"))
    return sum(file.stat().st_size for file in files if file.exists())
