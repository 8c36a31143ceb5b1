#!/usr/bin/python3
"""Installs and activates releases on this machine. Run as root; Ansible drives it.

    release look ARTIFACT       check it where it lies, without unpacking it
    release install ARTIFACT    verify, unpack and install it beside the live release
    release activate VERSION    migrate, make it current, restart, smoke-test; on failure
                                put the previous release back
    release rollback            activate the release that was live before
    release pin VERSION         never remove it; `unpin` takes that back
    release current             print the live version

`look` needs no rights: the controller asks before it uploads. Each command may be
repeated: what is done already is left alone. The last line printed is JSON:
{"changed": true|false, "version": …}. Exit code 1 with one sentence on failure.

/etc/tap-trading/release-keys has the public keys that may sign releases, one in Base64 on
each line, and /etc/tap-trading/release-floor the oldest version that may be installed.

Kept are the live release, the one before it, pinned ones, and the last five that worked; one that
was tried and failed goes with the next that works. What
was done or refused, when, and by whom, is a line of JSON in /opt/app/releases.jsonl.
"""

import argparse
import base64
import binascii
import contextlib
import fcntl
import gzip
import hashlib
import http.client
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

VERSION = re.compile(r"v[0-9]+\.[0-9]+\.[0-9]+-[0-9]+\+[0-9a-f]{7,40}(\.dirty\.[0-9a-f]{8})?")

SERVICES = ("api", "ws", "price", "resolver")
#: Where each service answers /healthz and /version.
PORTS = {"api": 8080, "ws": 8081, "price": 8090, "resolver": 8091}
SMOKE_TEST_S = 30.0

#: What an artifact says about itself.
PAPERS = ("manifest.json", "manifest.sig", "checksums.sha256")
#: So many releases that worked are kept besides those that are kept anyway.
KEPT = 5
#: In a release's folder: it went live, last when this file was written; it was tried and did not
#: come up; it is never removed.
WORKED, FAILED, PINNED = ".worked", ".failed", ".pinned"
#: What reading a damaged archive may raise.
DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)


class ReleaseError(Exception):
    """Not done; the text says why and what was left as it was."""


class Machine:
    """The places on this machine, so that tests can use others."""

    def __init__(
        self,
        root: Path = Path("/opt/app"),
        python: str = "/usr/bin/python3",
        etc: Path = Path("/etc/tap-trading"),
    ) -> None:
        self.keys = etc / "release-keys"
        self.floor = etc / "release-floor"
        self.releases = root / "releases"
        self.current = root / "current"
        self.previous = root / "previous"
        self.log = root / "releases.jsonl"
        self.python = python

    def live_version(self) -> str | None:
        """The version `current` points to; None before the first release."""
        return _pointed(self.current)

    def previous_version(self) -> str | None:
        """The version that was live before; None when there was none."""
        return _pointed(self.previous)

    def note(self, **what: object) -> None:
        """Add a line to the log. What was done stands even when it cannot be written."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"at": at, **what}) + "\n"
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


def _pointed(link: Path) -> str | None:
    try:
        return link.readlink().name
    except OSError:
        return None


@contextlib.contextmanager
def _alone(machine: Machine) -> Iterator[None]:
    """While it lasts, no other run installs or activates anything."""
    try:
        folder = os.open(machine.releases, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError as error:
        raise ReleaseError(
            f"there is no {machine.releases}: run playbooks/provision.yml first"
        ) from error
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ReleaseError("another deployment is under way on this machine") from error
        yield
    finally:
        os.close(folder)


@contextlib.contextmanager
def _opened(artifact: Path, intention: str) -> Iterator[tarfile.TarFile]:
    """The archive to read; what goes wrong meanwhile is one sentence."""
    try:
        with tarfile.open(artifact, "r:gz") as archive:
            yield archive
    except DAMAGE as error:
        raise ReleaseError(f"{artifact} is not a whole artifact ({error})") from error
    except OSError as error:
        raise ReleaseError(f"cannot {intention} {artifact}: {error.strerror or error}") from error


def _unpack(artifact: Path, target: Path) -> None:
    with _opened(artifact, "unpack") as archive:
        for member in archive:
            parts = Path(member.name).parts
            if member.name.startswith("/") or ".." in parts:
                raise ReleaseError(f"{artifact.name}: unsafe path {member.name!r}")
            if not (member.isfile() or member.isdir()):
                raise ReleaseError(f"{artifact.name}: {member.name!r} is not a plain file")
            archive.extract(member, target, set_attrs=False)
            (target / member.name).chmod(0o755 if member.mode & 0o111 else 0o644)


def trusted(path: Path) -> list[str]:
    """The public keys that a file lists. Raises ReleaseError when there are none."""
    try:
        keys = path.read_text().split()
    except FileNotFoundError:
        keys = []
    if not keys:
        raise ReleaseError(f"no key is trusted in {path}: run playbooks/provision.yml first")
    return keys


def _signed(paper: bytes, signature: bytes, keys: Sequence[str]) -> bool:
    """Whether one of these keys has signed a paper."""
    try:
        from nacl.exceptions import BadSignatureError  # noqa: PLC0415 # the machine may lack it
        from nacl.signing import VerifyKey  # noqa: PLC0415 # likewise
    except ImportError as error:
        raise ReleaseError("python3-nacl is missing: run playbooks/provision.yml first") from error
    for key in keys:
        try:
            verifier = VerifyKey(base64.b64decode(key, validate=True))
        except (binascii.Error, ValueError) as error:
            raise ReleaseError(f"the trusted key {key!r} is none: Base64 of 32 bytes") from error
        with contextlib.suppress(BadSignatureError, ValueError):
            verifier.verify(paper, base64.b64decode(signature.strip(), validate=True))
            return True
    return False


def _verify(papers: dict[str, bytes], found: dict[str, str], keys: Sequence[str]) -> dict[str, Any]:
    """The manifest is signed by one of the keys; it vouches for the checksums, and they for every
    file: each is listed, and everything listed is there and right.

    `papers` holds the PAPERS that are there, `found` the SHA-256 of every file. Returns the
    manifest.
    """
    if "manifest.json" in papers and "manifest.sig" not in papers:
        raise ReleaseError("the artifact is not signed")
    try:
        lines = papers["checksums.sha256"].decode().splitlines()
        manifest = json.loads(papers["manifest.json"])
        version, sums = manifest["version"], manifest["checksums"]
    except (ValueError, KeyError, TypeError) as error:
        raise ReleaseError(
            f"the artifact has no readable manifest or checksums ({error})"
        ) from error
    if not _signed(papers["manifest.json"], papers["manifest.sig"], keys):
        raise ReleaseError(
            "no trusted key has signed the manifest of the artifact: it was altered, or signed by others"
        )
    if found["checksums.sha256"] != sums:
        raise ReleaseError("checksums.sha256 in the artifact does not match its manifest")
    listed = dict(reversed(line.split("  ", 1)) for line in lines if "  " in line)
    if missing := sorted(set(listed) - set(found)):
        raise ReleaseError(f"the artifact lacks {missing[0]}")
    if extra := sorted(set(found) - set(listed) - set(PAPERS)):
        raise ReleaseError(f"the artifact holds {extra[0]}, which its checksums do not list")
    for name, wanted in listed.items():
        if found[name] != wanted:
            raise ReleaseError(f"{name} in the artifact does not match its checksum")
    if not (isinstance(version, str) and VERSION.fullmatch(version)):
        raise ReleaseError(f"{version!r} is not a release version")
    return dict(manifest)


def _number(version: str) -> tuple[int, ...]:
    """What orders versions: major, minor, patch and build."""
    return tuple(map(int, re.findall(r"[0-9]+", version.partition("+")[0])))


def _fits(machine: Machine, manifest: dict[str, Any]) -> None:
    """Whether this machine takes such a release. Raises ReleaseError, which says why not."""
    version = manifest["version"]
    with contextlib.suppress(FileNotFoundError):
        floor = machine.floor.read_text().strip()
        if floor and _number(version) < _number(floor):
            raise ReleaseError(f"{version} is older than {floor}, the oldest that may be installed")
    wanted = manifest.get("requires_python")
    code = "import sys; print('==%d.%d.*' % sys.version_info[:2])"
    if wanted != (found := machine.run(machine.python, "-I", "-c", code).strip()):
        raise ReleaseError(f"{version} needs Python {wanted}, and {machine.python} is {found}")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def look(artifact: Path, keys: Sequence[str]) -> dict[str, object]:
    """Check an artifact where it lies; its version, and the sum that tells builds of it apart."""
    papers: dict[str, bytes] = {}
    found: dict[str, str] = {}
    with _opened(artifact, "read") as archive:
        for member in archive:
            if (file := archive.extractfile(member)) is None:
                continue
            content = file.read()
            found[member.name] = _sha256(content)
            if member.name in PAPERS:
                papers[member.name] = content
        # The sum of the whole stands at its very end.
        while archive.fileobj and archive.fileobj.read(1 << 20):
            pass
    manifest = _verify(papers, found, keys)
    return {
        "changed": False,
        "version": manifest["version"],
        "checksums": found["checksums.sha256"],
    }


def _stage(machine: Machine) -> tempfile.TemporaryDirectory[str]:
    """A new scratch folder; those that killed runs left behind are removed."""
    for left in machine.releases.glob(".incoming-*"):
        shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(dir=machine.releases, prefix=".incoming-")


def install(machine: Machine, artifact: Path) -> dict[str, object]:
    """Install an artifact into its own folder. Nothing is left behind when it fails."""
    with _alone(machine), _stage(machine) as scratch:
        stage = Path(scratch, "release")
        stage.mkdir(mode=0o755)
        _unpack(artifact, stage)
        files = {str(path.relative_to(stage)): path for path in stage.rglob("*") if path.is_file()}
        manifest = _verify(
            {name: files[name].read_bytes() for name in PAPERS if name in files},
            {name: _sha256(path.read_bytes()) for name, path in files.items()},
            trusted(machine.keys),
        )
        _fits(machine, manifest)
        version = manifest["version"]
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
    """Move a link in one step: there is no moment without it."""
    fresh = link.with_name(f".{link.name}-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    fresh.symlink_to(Path("releases", version))
    fresh.rename(link)


def _ask(port: int, path: str) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        said = json.loads(answer.read())
        if not isinstance(said, dict):
            raise http.client.HTTPException(f"{said!r} is not an object")
        return answer.status, said
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


def _tap(machine: Machine, version: str, *words: str) -> str:
    """Run an installed release's own `tap` on the databases, as the app user; its output."""
    try:
        app = pwd.getpwnam("app")
    except KeyError as error:
        raise ReleaseError("there is no user app: run playbooks/provision.yml first") from error
    return machine.run(
        "setpriv", f"--reuid={app.pw_uid}", f"--regid={app.pw_gid}", "--init-groups",
        "env", "-i", "DB_PATH=/data/bets.db", "PRICES_DB_PATH=/data/prices.db",
        str(machine.releases / version / "tap"), *words,
    )  # fmt: skip


def _migrate(machine: Machine, version: str) -> None:
    """Bring the databases to the release's own schema, unless they are beyond what it runs on."""
    try:
        manifest = json.loads((machine.releases / version / "manifest.json").read_bytes())
        runs_on = {name: (int(old), int(new)) for name, (old, new) in manifest["schema"].items()}
    except (KeyError, ValueError, TypeError, AttributeError):
        runs_on = {}  # of before releases said so
    for name, found in json.loads(_tap(machine, version, "schema") if runs_on else "{}").items():
        oldest, newest = runs_on[name]
        if found > newest:
            raise ReleaseError(
                f"{version} is built for another schema: it runs on {oldest} and {newest} of"
                f" {name}.db, which is at {found}"
            )
    _tap(machine, version, "migrate")


def _systemctl(
    machine: Machine, verb: str, kind: str, services: tuple[str, ...] = SERVICES
) -> None:
    machine.run("systemctl", verb, *(f"tap-trading-{service}.{kind}" for service in services))


def _start_sockets(machine: Machine) -> None:
    """Take the ports. Raises ReleaseError, which names who has one of them."""
    try:
        _systemctl(machine, "start", "socket")
    except ReleaseError:
        for port in PORTS.values():
            if owner := _stranger_on(machine, port):
                raise ReleaseError(f"127.0.0.1:{port} is in use by {owner}") from None
        raise


def _stranger_on(machine: Machine, port: int) -> str | None:
    """Who listens on a port, unless it is systemd for us."""
    with contextlib.suppress(ReleaseError):
        line = machine.run("ss", "-ltnpH", f"sport = :{port}").strip()
        if line and '("systemd",pid=1,' not in line:
            owner = re.search(r'\(\("([^"]*)",pid=([0-9]+)', line)
            return f"{owner[1]} (process {owner[2]})" if owner else "another program"
    return None


def _restart(machine: Machine) -> None:
    _start_sockets(machine)
    _systemctl(machine, "restart", "service")


def _stale(version: str) -> tuple[str, ...]:
    """The services that still run another release: a deployment was interrupted."""
    found = []
    for service, port in PORTS.items():
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            if _ask(port, "/version")[1].get("version") != version:
                found.append(service)
    return tuple(found)


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
    with _alone(machine):
        if not (machine.releases / version / "checksums.sha256").is_file():
            raise ReleaseError(f"{version} is not installed")
        previous = machine.live_version()
        if previous == version:
            return _confirm(machine, version)
        _migrate(machine, version)
        _point(machine.current, version)
        try:
            _restart(machine)
            _smoke_test(version, PORTS)
        except (ReleaseError, OSError) as error:
            try:
                now = _undo(machine, previous)
            except (ReleaseError, OSError) as worse:
                now = f"putting {previous or 'nothing'} back failed too: {worse}"
            (machine.releases / version / FAILED).touch()
            raise ReleaseError(f"{version} does not work: {error}; {now}") from error
        (machine.releases / version / FAILED).unlink(missing_ok=True)
        (machine.releases / version / WORKED).touch()
        if previous:
            _point(machine.previous, previous)
        removed = _prune(machine)
        return {"changed": True, "version": version, "previous": previous, "removed": removed}


def _prune(machine: Machine) -> list[str]:
    """Remove the releases that failed and those that worked long ago; their versions."""
    found = [path for path in machine.releases.iterdir() if VERSION.fullmatch(path.name)]
    failed = [path for path in found if (path / FAILED).exists()]
    worked = [path for path in found if (path / WORKED).exists() and path not in failed]
    worked.sort(key=lambda path: (path / WORKED).stat().st_mtime_ns)
    kept = {machine.live_version(), machine.previous_version()}
    kept |= {path.name for path in found if (path / PINNED).exists()}
    removed = sorted(path for path in failed + worked[:-KEPT] if path.name not in kept)
    for path in removed:
        # Never half there under its name; what is left of it the next installation sweeps away.
        doomed = path.with_name(f".incoming-{path.name}")
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return [path.name for path in removed]


def rollback(machine: Machine) -> dict[str, object]:
    """Make the release live that was so before, with all that goes with it."""
    previous = machine.previous_version()
    if previous is None:
        raise ReleaseError("there is no release before the live one")
    return activate(machine, previous)


def pin(machine: Machine, version: str, *, pinned: bool) -> dict[str, object]:
    """Keep a release for ever, or no longer than others."""
    with _alone(machine):
        folder = machine.releases / version
        if not VERSION.fullmatch(version) or not folder.is_dir():
            raise ReleaseError(f"{version} is not installed")
        changed = (folder / PINNED).exists() is not pinned
        if pinned:
            (folder / PINNED).touch()
        else:
            (folder / PINNED).unlink(missing_ok=True)
        return {"changed": changed, "version": version}


def _confirm(machine: Machine, version: str) -> dict[str, object]:
    """`version` is the live release already: see to it that it is also what runs."""
    _start_sockets(machine)
    _systemctl(machine, "start", "service")
    if stale := _stale(version):
        _systemctl(machine, "restart", "service", stale)
    _smoke_test(version, PORTS)
    return {"changed": bool(stale), "version": version}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="release", description="Install and activate releases.")
    commands = parser.add_subparsers(dest="command", required=True)
    looking = commands.add_parser("look")
    looking.add_argument("--trust", action="append", default=[], metavar="KEY")
    looking.add_argument("artifact", type=Path)
    commands.add_parser("install").add_argument("artifact", type=Path)
    for command in ("activate", "pin", "unpin"):
        commands.add_parser(command).add_argument("version")
    commands.add_parser("rollback")
    commands.add_parser("current")
    parser.add_argument("--python", default="/usr/bin/python3")
    parser.add_argument(
        "--by", default=os.environ.get("SUDO_USER", "root"), help="who, for the log"
    )
    args = parser.parse_args()
    machine = Machine(python=args.python)
    # A release is everyone's to read, whatever root's own files are.
    os.umask(0o022)
    # An end from outside still removes what is half done.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("release: ended before it was done"))
    try:
        match args.command:
            case "look":
                keys = args.trust or trusted(machine.keys)
                print(json.dumps(look(args.artifact, keys)))
            case "current":
                print(machine.live_version() or "none")
            case _:
                print(json.dumps(_noted(machine, args)))
    except (ReleaseError, OSError) as error:
        sys.exit(f"release: {error}")


def _noted(machine: Machine, args: argparse.Namespace) -> dict[str, object]:
    """Do what changes the machine, and put it on record: what was done, and what was refused."""
    record = {"by": args.by, "what": args.command}
    if args.command in ("activate", "pin", "unpin"):
        record["version"] = args.version
    try:
        match args.command:
            case "install":
                done = install(machine, args.artifact)
            case "activate":
                done = activate(machine, args.version)
            case "rollback":
                done = rollback(machine)
            case _:
                done = pin(machine, args.version, pinned=args.command == "pin")
    except (ReleaseError, OSError) as error:
        machine.note(**record, failed=str(error))
        raise
    if done["changed"]:
        machine.note(**record | {name: told for name, told in done.items() if name != "changed"})
    return done


if __name__ == "__main__":
    main()
