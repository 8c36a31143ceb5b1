"""Small file systems, to be filled."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_file_system(folder: Path, megabytes: int) -> Iterator[None]:
    """A file system of its own in a new `folder`; without the right to mount one the test is
    skipped, loudly.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("no file system can be mounted here: a full one was NOT tested")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
