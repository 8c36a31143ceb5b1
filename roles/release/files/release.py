#!/usr/bin/python3
"""Installs and activates releases on this machine. Run as root; Ansible drives it.

    release install ARTIFACT    verify, unpack and install it beside the live release
    release activate VERSION    migrate, make it current, restart, smoke-test; on failure
                                put the previous release back
    release current             print the live version

Each command may be repeated: what is done already is left alone. The last line printed
is JSON: {"changed": true|false, "version": …}. Exit code 1 with one sentence on failure.
"""

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from pathlib import Path

VERSION = re.compile(r"v[0-9]+\.[0-9]+\.[0-9]+-[0-9]+\+[0-9a-f]{7,40}(\.dirty\.[0-9a-f]{8})?")

SERVICES = ("api", "ws", "price")
#: Where each service answers /healthz and /version.
PORTS = {"api": 8080, "ws": 8081, "price": 8090}
SMOKE_TEST_S = 30.0


class ReleaseError(Exception):
    """Not done; the text says why and what was left as it was."""


class Machine:
    """The places on this machine, so that tests can use others."""

    def __init__(self, root: Path = Path("/opt/app"), python: str = "/usr/bin/python3") -> None:
        self.releases = root / "releases"
        self.current = root / "current"
        self.python = python

    def live_version(self) -> str | None:
        """The version `current` points to; None before the first release."""
        try:
            return self.current.readlink().name
        except OSError:
            return None

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


def _unpack(artifact: Path, target: Path) -> None:
    try:
        with tarfile.open(artifact, "r:gz") as archive:
            for member in archive:
                parts = Path(member.name).parts
                if member.name.startswith("/") or ".." in parts:
                    raise ReleaseError(f"{artifact.name}: unsafe path {member.name!r}")
                if not (member.isfile() or member.isdir()):
                    raise ReleaseError(f"{artifact.name}: {member.name!r} is not a plain file")
                archive.extract(member, target, set_attrs=False)
                (target / member.name).chmod(0o755 if member.mode & 0o111 else 0o644)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ReleaseError(f"{artifact.name} is not a whole artifact ({error})") from error


def _verify(stage: Path) -> dict[str, object]:
    """Every file is listed with its checksum, and every listed file is there and right."""
    try:
        lines = (stage / "checksums.sha256").read_text().splitlines()
        manifest = json.loads((stage / "manifest.json").read_text())
        version = manifest["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReleaseError(
            f"the artifact has no readable manifest or checksums ({error})"
        ) from error
    listed = dict(reversed(line.split("  ", 1)) for line in lines if "  " in line)
    found = {str(p.relative_to(stage)) for p in stage.rglob("*") if p.is_file()}
    if missing := sorted(set(listed) - found):
        raise ReleaseError(f"the artifact lacks {missing[0]}")
    if extra := sorted(found - set(listed) - {"checksums.sha256"}):
        raise ReleaseError(f"the artifact holds {extra[0]}, which its checksums do not list")
    for name, wanted in listed.items():
        if hashlib.sha256((stage / name).read_bytes()).hexdigest() != wanted:
            raise ReleaseError(f"{name} in the artifact does not match its checksum")
    if not (isinstance(version, str) and VERSION.fullmatch(version)):
        raise ReleaseError(f"{version!r} is not a release version")
    return manifest


def install(machine: Machine, artifact: Path) -> dict[str, object]:
    """Install an artifact into its own folder. Nothing is left behind when it fails."""
    with tempfile.TemporaryDirectory(dir=machine.releases, prefix=".incoming-") as scratch:
        stage = Path(scratch, "release")
        stage.mkdir(mode=0o755)
        _unpack(artifact, stage)
        version = str(_verify(stage)["version"])
        target = machine.releases / version
        ours = (stage / "checksums.sha256").read_bytes()
        if target.is_dir():
            if (target / "checksums.sha256").read_bytes() != ours:
                raise ReleaseError(f"another build of {version} is installed already")
            return {"changed": False, "version": version}
        machine.run(machine.python, "-m", "venv", str(stage / "venv"))
        machine.run(
            str(stage / "venv/bin/python"), "-I", "-m", "pip", "install", "--quiet",
            "--disable-pip-version-check", "--no-cache-dir", "--no-index", "--no-deps",
            "--require-hashes", "--find-links", str(stage / "wheels"),
            "--requirement", str(stage / "requirements.txt"),
        )  # fmt: skip
        # What the wheels held is installed now; the interpreter is called by its full path.
        shutil.rmtree(stage / "wheels")
        stage.rename(target)
    return {"changed": True, "version": version}


def _point(link: Path, version: str) -> None:
    """Move `current` in one step: there is no moment without it."""
    fresh = link.with_name(f".current-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    fresh.symlink_to(Path("releases", version))
    fresh.rename(link)


def _ask(port: int, path: str) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def _smoke_test(version: str, ports: dict[str, int], wait_s: float = SMOKE_TEST_S) -> None:
    """Every service answers as this version and is healthy, within `wait_s` seconds."""
    deadline = time.monotonic() + wait_s
    for service, port in ports.items():
        while True:
            try:
                _, build = _ask(port, "/version")
                status, report = _ask(port, "/healthz")
                if build.get("version") == version and status == http.client.OK:
                    break
                seen = f"is {build.get('version')} and says {report}"
            except (OSError, ValueError, http.client.HTTPException) as error:
                seen = f"does not answer ({error})"
            if time.monotonic() >= deadline:
                raise ReleaseError(f"{service} {seen}")
            time.sleep(0.2)


def _migrate(machine: Machine, version: str) -> None:
    """Bring the schema up to date as the app user, with the new release's own migrations."""
    app = pwd.getpwnam("app")
    machine.run(
        "setpriv", f"--reuid={app.pw_uid}", f"--regid={app.pw_gid}", "--init-groups",
        "env", "-i", "DB_PATH=/data/bets.db",
        str(machine.releases / version / "tap"), "migrate",
    )  # fmt: skip


def _systemctl(machine: Machine, verb: str, kind: str) -> None:
    machine.run("systemctl", verb, *(f"tap-trading-{service}.{kind}" for service in SERVICES))


def _restart(machine: Machine) -> None:
    _systemctl(machine, "start", "socket")
    _systemctl(machine, "restart", "service")


def _undo(machine: Machine, previous: str | None) -> str:
    """Put the previous release back; the words for what is live now."""
    if previous is None:
        _systemctl(machine, "stop", "socket")
        _systemctl(machine, "stop", "service")
        machine.current.unlink()
        return "no release is live"
    _point(machine.current, previous)
    _restart(machine)
    return f"{previous} is live again"


def activate(machine: Machine, version: str) -> dict[str, object]:
    """Make an installed release the live one; if it does not come up, put the last one back."""
    if not (machine.releases / version / "checksums.sha256").is_file():
        raise ReleaseError(f"{version} is not installed")
    previous = machine.live_version()
    if previous == version:
        _systemctl(machine, "start", "socket")
        _systemctl(machine, "start", "service")
        _smoke_test(version, PORTS)
        return {"changed": False, "version": version}
    _migrate(machine, version)
    _point(machine.current, version)
    try:
        _restart(machine)
        _smoke_test(version, PORTS)
    except ReleaseError as error:
        try:
            now = _undo(machine, previous)
        except ReleaseError as worse:
            now = f"putting {previous or 'nothing'} back failed too: {worse}"
        raise ReleaseError(f"{version} does not work: {error}; {now}") from error
    return {"changed": True, "version": version}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="release", description="Install and activate releases.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install").add_argument("artifact", type=Path)
    commands.add_parser("activate").add_argument("version")
    commands.add_parser("current")
    parser.add_argument("--python", default="/usr/bin/python3")
    args = parser.parse_args()
    machine = Machine(python=args.python)
    try:
        match args.command:
            case "install":
                print(json.dumps(install(machine, args.artifact)))
            case "activate":
                print(json.dumps(activate(machine, args.version)))
            case _:
                print(machine.live_version() or "none")
    except ReleaseError as error:
        sys.exit(f"release: {error}")


if __name__ == "__main__":
    main()
