"""The places on this machine, and what everything here does to it: run programs, move links,
and put on record what was done.
"""

import json
import os
import pwd
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

VERSION = re.compile(r"v[0-9]+\.[0-9]+\.[0-9]+-[0-9]+\+[0-9a-f]{7,40}(\.dirty\.[0-9a-f]{8})?")

#: In a release's folder: it went live, last when this file was written; it was tried and did not
#: work; it is never removed.
WORKED, FAILED, PINNED = ".worked", ".failed", ".pinned"


#: What a file or link is called until it is moved to its name.
_NEW = ".new"
#: Nobody comes for a result any more, in s.
_FORGOTTEN_S = 3600


class ReleaseError(Exception):
    """Not done; the text says why and what was left as it was.

    `words` are the last lines of the journal of what failed.
    """

    def __init__(self, text: str, words: list[str] | None = None) -> None:
        super().__init__(text)
        self.words = words or []


def now() -> str:
    """The time as records have it: RFC 3339, UTC, ms."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Machine:
    """The places on this machine, so that tests can use others."""

    def __init__(
        self,
        root: Path = Path("/opt/app"),
        python: str = "/usr/bin/python3",
        etc: Path = Path("/etc"),
        data: Path = Path("/data"),
    ) -> None:
        self.root = root
        self.python = python
        self.data = data
        self.keys = etc / "tap-trading/release-keys"
        self.floor = etc / "tap-trading/release-floor"
        self.backup_key = etc / "tap-trading/backup/key"  # of whoever encrypts copies
        self.units = etc / "systemd/system"
        self.releases = root / "releases"
        self.upload = self.releases / ".upload.tar.gz"  # on its way from the controller
        self.current = root / "current"
        self.previous = root / "previous"
        self.log = root / "releases.jsonl"
        self.deployment = root / "deployment.json"
        self.result = root / "deployment.result"
        self.lock = root / "deployment.lock"
        self.restore = root / "restore.json"

    def live_version(self) -> str | None:
        """The version `current` points to; None before the first release."""
        return pointed(self.current)

    def previous_version(self) -> str | None:
        """The version that was live before; None when there was none."""
        return pointed(self.previous)

    def manifest(self, version: str) -> dict[str, Any]:
        """What an installed release says about itself; {} when that cannot be read."""
        try:
            found = json.loads((self.releases / version / "manifest.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def is_installed(self, version: str) -> bool:
        """Whether a release is there, whole."""
        return (self.releases / version / "checksums.sha256").is_file()

    def note(self, **what: object) -> None:
        """Add a line to the log. What was done stands even when it cannot be written."""
        line = json.dumps({"at": now(), **what}) + "\n"
        try:
            file = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, line.encode())
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            print(f"release: {self.log} takes no line: {error.strerror}", file=sys.stderr)

    def run(self, *command: str) -> str:
        """Run a program; its output. Raises ReleaseError."""
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise ReleaseError(f"{command[0]}: {error.strerror}") from error
        if done.returncode != 0:
            words = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise ReleaseError(f"{command[0]}: {' / '.join(words[-3:]) or done.returncode}")
        return done.stdout

    def tap(self, version: str, *words: str, **more: str) -> str:
        """Run an installed release's own `tap` on the databases, as the app user; its output.
        `more` are settings beside their paths.

        Raises ReleaseError.
        """
        try:
            app = pwd.getpwnam("app")
        except KeyError as error:
            raise ReleaseError("there is no user app: run playbooks/provision.yml first") from error
        try:
            return self.run(
                "setpriv", f"--reuid={app.pw_uid}", f"--regid={app.pw_gid}", "--init-groups", "env",
                "-i", f"DB_PATH={self.data}/bets.db", f"PRICES_DB_PATH={self.data}/prices.db",
                *(f"{name}={value}" for name, value in more.items()),
                str(self.releases / version / "tap"), *words,
            )  # fmt: skip
        except ReleaseError as error:  # it says who it is by itself
            said = str(error)
            raise ReleaseError(
                said.removeprefix("setpriv: ") if "setpriv: tap: " in said else said
            ) from error

    def systemctl(self, *words: str) -> str:
        """Raises ReleaseError."""
        return self.run("systemctl", *words)


def pointed(link: Path) -> str | None:
    """The version that a link points to; None when there is no link."""
    try:
        return link.readlink().name
    except OSError:
        return None


def point(link: Path, target: Path) -> None:
    """Move a link in one step: there is no moment without it. On disk when this returns."""
    fresh = link.with_name(f".{link.name}{_NEW}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.rename(link)
    sync(link.parent)


def sync(folder: Path) -> None:
    """Have the names in a folder on disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(machine: Machine) -> None:
    """Remove what those who were killed had not moved to its name yet, or not fetched any more."""
    for left in machine.root.glob(f"{machine.result.name}-*"):
        if left.stat().st_mtime < time.time() - _FORGOTTEN_S:
            left.unlink()
    for folder in (machine.root, machine.units):
        for left in folder.glob(f".*{_NEW}"):
            left.unlink()


def release_path(version: str) -> Path:
    """A release's folder, as the links beside `releases` name it."""
    return Path("releases", version)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file in one step, on disk when this returns. Raises OSError."""
    fresh = path.with_name(f".{path.name}{_NEW}")
    with fresh.open("w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    sync(path.parent)


def read_json(path: Path) -> dict[str, Any] | None:
    """A file of `write_json`; None when there is none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
