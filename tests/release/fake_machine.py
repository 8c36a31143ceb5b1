"""A machine whose systemd, services and databases are a few dictionaries, and small artifacts."""

import base64
import hashlib
import io
import json
import os
import re
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from nacl.signing import SigningKey
from tap_release import artifact as artifacts
from tap_release import colours
from tap_release.machine import Machine, ReleaseError

VERSION = "v1.2.3-4+0a1b2c3d"
NEWER = "v1.2.4-9+99aabbcc"
SERVICES = ("api", "ws", "price", "resolver")
PYTHON = f"=={sys.version_info[0]}.{sys.version_info[1]}.*"


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


OUR_KEY, OTHER_KEY = SigningKey(bytes(32)), SigningKey(b"1" * 32)
TRUSTED, OTHER = (base64_of(bytes(key.verify_key)) for key in (OUR_KEY, OTHER_KEY))


def contents(
    version: object = VERSION,
    key: SigningKey = OUR_KEY,
    said: dict[str, object] | None = None,
    **extra: bytes,
) -> dict[str, bytes]:
    """The files of a small artifact, papers last; `said` is what else its manifest says."""
    files = {
        "api": b"#!/bin/sh\n",
        "tap": b"#!/bin/sh\n",
        "requirements.txt": b"",
        "wheels/none.whl": os.urandom(3000),
        **extra,
    }
    sums = checksums(files)
    manifest = {
        "version": version,
        "requires_python": PYTHON,
        "checksums": hashlib.sha256(sums).hexdigest(),
        **(said or {}),
    }
    return files | {"checksums.sha256": sums} | signed(json.dumps(manifest).encode(), key)


def signed(manifest: bytes, key: SigningKey = OUR_KEY) -> dict[str, bytes]:
    """A manifest with its signature."""
    signature = base64_of(key.sign(manifest).signature)
    return {"manifest.json": manifest, "manifest.sig": f"{signature}\n".encode()}


def checksums(files: dict[str, bytes]) -> bytes:
    return "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items()
    ).encode()


def pack(path: Path, files: dict[str, bytes], *more: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mode = 0o755 if name in ("api", "tap") else 0o644
            archive.addfile(info, io.BytesIO(content))
        for info in more:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


class FakeMachine(Machine):
    """A machine whose programs only leave a note; `failing` words make a command fail."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, sys.executable, root / "etc", root / "data")
        for folder in (self.releases, self.data, self.keys.parent, self.units):
            folder.mkdir(parents=True)
        self.keys.write_text(f"{TRUSTED}\n")
        #: What `tap schema` of a release says.
        self.schema = {"bets": 3, "prices": 1}
        #: Whether releases know how to encrypt copies.
        self.encrypts = True
        self.commands: list[str] = []
        self.failing: list[str] = []
        #: By unit, the release that it runs.
        self.running: dict[str, str] = {}
        #: By plain name of a unit, which one systemd takes it for.
        self.names: dict[str, str] = {}
        #: What was asked of colours, in its order.
        self.asked: list[str] = []
        #: Releases that never get ready, and those that do not answer through Nginx.
        self.unready: set[str] = set()
        self.unseen: set[str] = set()
        #: Units that had to be restarted.
        self.restarted: set[str] = set()
        #: Called before each command.
        self.on_command: Callable[[str], None] = lambda _line: None

    def run(self, *command: str) -> str:
        line = " ".join(command)
        self.on_command(line)
        self.commands.append(line)
        for words in self.failing:
            if words in line:
                raise ReleaseError(f"{command[0]}: {words} failed")
        if command[0] == "systemctl":
            return self._systemctl(command[1], [each for each in command[2:] if each[0] != "-"])
        if command[0] == "systemd-run":
            command = command[5:]
        if command[1:3] == ("-I", "-c"):
            return f"{PYTHON}\n"
        if command[1:3] == ("-m", "venv"):
            (Path(command[-1]) / "bin").mkdir(parents=True)
        return self._tap(command) if command[0] == "setpriv" else ""

    def _systemctl(self, verb: str, units: list[str]) -> str:
        if verb == "daemon-reload":
            links = [path for path in self.units.iterdir() if path.is_symlink()]
            self.names = {link.name: link.readlink().name for link in links}
        if verb == "show" and set(units) & {f"tap-trading-{each}.service" for each in SERVICES}:
            return "\n\n".join(f"Id={self.names.get(unit, unit)}" for unit in units)
        if verb == "show":
            return "\n\n".join(
                f"Id={unit}\nActiveState={'active' if unit in self.running else 'inactive'}\n"
                f"SubState=x\nNRestarts={int(unit in self.restarted)}"
                for unit in units
            )
        for unit in units:
            if verb == "stop":
                self.running.pop(unit, None)
            elif verb in ("start", "restart") and (colour := re.search("blue|green", unit)):
                version = colours.version_of(self, colour[0])
                if version is not None and (verb == "restart" or unit not in self.running):
                    self.running[unit] = version
        return ""

    def _tap(self, command: tuple[str, ...]) -> str:
        if command[-1] == "schema":
            return json.dumps(self.schema)
        if command[-1] == "settings":
            return "TAP_BACKUP_KEY_FILE=\n" if self.encrypts else "LOG_LEVEL=info\n"
        return ""

    def site(self, version: str) -> str | None:
        """What is wrong with the site as everybody sees it."""
        self.commands.append(f"smoke {version}")
        return "is not healthy ({'redis': 'no'})" if version in self.unseen else None

    def colour_runs(self, colour: str) -> set[str]:
        """The releases that the units of a colour run."""
        return {version for unit, version in self.running.items() if colour in unit}

    def left(self) -> list[str]:
        """What lies in the folder of the releases, hidden names too."""
        return sorted(path.name for path in self.releases.iterdir())

    # What its services answer.

    def ask(self, service: str, path: str) -> tuple[int, dict[str, object]]:
        """The live colour's services have the ports."""
        return self.ask_colour(service, colours.live(self) or "blue", path)

    def ask_colour(self, service: str, colour: str, path: str) -> tuple[int, dict[str, object]]:
        """Each says which release it is, and works if that is the live one."""
        version = self.running.get(colours.unit(service, colour))
        if version is None:
            raise ConnectionRefusedError("nobody listens")
        if path == "/version":
            return 200, {"version": version}
        self.asked.append(f"{service} {colour} {path}")
        if path == "/readyz":
            ill = service == "ws" and version in self.unready
            failing = ["price_age"] if ill or self.live_version() is None else []
            checks = {"price_age": "no price yet" if failing else "40 ms"}
            return 200, {"version": version, "failing": failing, "checks": checks}
        does = "leading" if version == self.live_version() else "standing by"
        return 200, {"checks": {"storing": does, "resolver": does}}


def installed(machine: FakeMachine, tmp_path: Path, *versions: str) -> None:
    """Install small releases of these versions."""
    for version in versions:
        artifacts.install(machine, pack(tmp_path / f"{version}.tar.gz", contents(version)))
    machine.commands.clear()
