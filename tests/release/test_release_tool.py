"""The tool that installs and activates releases on the machine, without a machine."""

import base64
import errno
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from nacl.signing import SigningKey
from tests.conftest import ROOT

PROGRAM = ROOT / "roles/release/files/release.py"
VERSION = "v1.2.3-4+0a1b2c3d"
NEWER = "v1.2.4-9+99aabbcc"
SERVICES = ("api", "ws", "price", "resolver")
PYTHON = f"=={sys.version_info[0]}.{sys.version_info[1]}.*"


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


OUR_KEY, OTHER_KEY = SigningKey(bytes(32)), SigningKey(b"1" * 32)
TRUSTED, OTHER = (base64_of(bytes(key.verify_key)) for key in (OUR_KEY, OTHER_KEY))


def load() -> ModuleType:
    specification = importlib.util.spec_from_file_location("release_tool", PROGRAM)
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


release = load()


class FakeMachine(release.Machine):
    """A machine whose programs only leave a note; `failing` words make a command fail."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, sys.executable, root)
        self.releases.mkdir()
        self.keys.write_text(f"{TRUSTED}\n")
        #: What `tap schema` of a release says.
        self.schema = {"bets": 3, "prices": 1}
        self.commands: list[str] = []
        self.failing: list[str] = []

    def run(self, *command: str) -> str:
        line = " ".join(command)
        self.commands.append(line)
        for words in self.failing:
            if words in line:
                raise release.ReleaseError(f"{command[0]}: {words} failed")
        if command[1:3] == ("-I", "-c"):
            return f"{PYTHON}\n"
        if command[-1] == "schema":
            return json.dumps(self.schema)
        if command[1:3] == ("-m", "venv"):
            (Path(command[3]) / "bin").mkdir(parents=True)
        return ""

    def left(self) -> list[str]:
        """What lies in the folder of the releases, hidden names too."""
        return sorted(path.name for path in self.releases.iterdir())


@pytest.fixture
def machine(tmp_path: Path) -> FakeMachine:
    root = tmp_path / "opt"
    root.mkdir()
    return FakeMachine(root)


# -- artifacts -------------------------------------------------------------------------------


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


def refused(machine: FakeMachine, artifact: Path) -> str:
    """The one sentence with which an artifact is refused; nothing is left of it."""
    before = machine.left()
    with pytest.raises(release.ReleaseError) as caught:
        release.install(machine, artifact)
    assert machine.left() == before
    assert not machine.current.exists()
    sentence = str(caught.value)
    assert sentence
    assert "\n" not in sentence
    return sentence


# -- install ---------------------------------------------------------------------------------


def test_a_good_artifact_is_installed_once(machine: FakeMachine, tmp_path: Path) -> None:
    artifact = pack(tmp_path / "a.tar.gz", contents())
    assert release.install(machine, artifact) == {"changed": True, "version": VERSION}
    folder = machine.releases / VERSION
    assert machine.left() == [VERSION]
    assert os.access(folder / "api", os.X_OK)
    assert not os.access(folder / "requirements.txt", os.X_OK) or os.getuid() == 0
    assert (folder / "requirements.txt").stat().st_mode & 0o777 == 0o644
    assert (folder / "venv/bin").is_dir()
    assert not (folder / "wheels").exists()
    assert folder.stat().st_mode & 0o777 == 0o755

    machine.commands.clear()
    assert release.install(machine, artifact) == {"changed": False, "version": VERSION}
    assert not [line for line in machine.commands if " -m " in line]
    assert machine.left() == [VERSION]


def test_dependencies_come_from_the_artifact_alone(machine: FakeMachine, tmp_path: Path) -> None:
    release.install(machine, pack(tmp_path / "a.tar.gz", contents()))
    (pip,) = [line for line in machine.commands if " pip " in line]
    for word in ("--no-index", "--require-hashes", "--no-deps", "--find-links", "-I"):
        assert f" {word} " in pip


def test_a_second_release_goes_beside_the_first(machine: FakeMachine, tmp_path: Path) -> None:
    release.install(machine, pack(tmp_path / "a.tar.gz", contents()))
    release.install(machine, pack(tmp_path / "b.tar.gz", contents(NEWER)))
    assert machine.left() == [VERSION, NEWER]


def test_another_build_of_an_installed_version_is_refused(
    machine: FakeMachine, tmp_path: Path
) -> None:
    release.install(machine, pack(tmp_path / "a.tar.gz", contents()))
    before = (machine.releases / VERSION / "checksums.sha256").read_bytes()
    other = pack(tmp_path / "b.tar.gz", contents(more=b"1"))
    with pytest.raises(release.ReleaseError, match=r"another build of v1\.2\.3-4"):
        release.install(machine, other)
    assert machine.left() == [VERSION]
    assert (machine.releases / VERSION / "checksums.sha256").read_bytes() == before


def test_a_changed_file_is_refused(machine: FakeMachine, tmp_path: Path) -> None:
    files = contents()
    files["api"] = b"#!/bin/sH\n"
    assert refused(machine, pack(tmp_path / "a.tar.gz", files)) == (
        "api in the artifact does not match its checksum"
    )


@pytest.mark.parametrize("share", [0.05, 0.2, 0.4, 0.5, 0.6, 0.8, 0.99])
def test_a_flipped_byte_anywhere_is_refused(
    machine: FakeMachine, tmp_path: Path, share: float
) -> None:
    whole = pack(tmp_path / "a.tar.gz", contents(big=os.urandom(20_000)))
    packed = bytearray(whole.read_bytes())
    packed[int(len(packed) * share)] ^= 0xFF
    whole.write_bytes(packed)
    assert refused(machine, whole)


def test_a_damaged_compressed_stream_is_refused(machine: FakeMachine, tmp_path: Path) -> None:
    """Text compresses into codes, of which some are invalid: another error than a wrong sum."""
    whole = pack(tmp_path / "a.tar.gz", contents(text=b"".join(b"%d\n" % n for n in range(9999))))
    packed = whole.read_bytes()
    for position in range(30, len(packed) - 8, len(packed) // 60):
        damaged = tmp_path / "damaged.tar.gz"
        damaged.write_bytes(packed[:position] + b"\xff" * 8 + packed[position + 8 :])
        assert refused(machine, damaged)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.95])
def test_a_truncated_artifact_is_refused(
    machine: FakeMachine, tmp_path: Path, share: float
) -> None:
    whole = pack(tmp_path / "a.tar.gz", contents())
    packed = whole.read_bytes()
    whole.write_bytes(packed[: int(len(packed) * share)])
    assert refused(machine, whole)


def test_what_is_no_artifact_is_refused(machine: FakeMachine, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    assert "notes.txt is not a whole artifact" in refused(machine, text)
    none = tmp_path / "none.tar.gz"
    assert refused(machine, none) == f"cannot unpack {none}: No such file or directory"


def test_a_missing_and_an_extra_file_are_refused(machine: FakeMachine, tmp_path: Path) -> None:
    files = contents()
    del files["tap"]
    assert refused(machine, pack(tmp_path / "a.tar.gz", files)) == "the artifact lacks tap"
    files = contents() | {"backdoor": b""}
    assert "holds backdoor, which its checksums do not list" in refused(
        machine, pack(tmp_path / "b.tar.gz", files)
    )


@pytest.mark.parametrize("name", ["manifest.json", "checksums.sha256"])
def test_an_artifact_without_its_papers_is_refused(
    machine: FakeMachine, tmp_path: Path, name: str
) -> None:
    files = contents()
    del files[name]
    assert "no readable manifest or checksums" in refused(machine, pack(tmp_path / "a", files))


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'"v"', b"\xff\xfe"])
def test_an_unreadable_manifest_is_refused(
    machine: FakeMachine, tmp_path: Path, text: bytes
) -> None:
    files = contents() | signed(text)
    assert "no readable manifest" in refused(machine, pack(tmp_path / "a", files))


@pytest.mark.parametrize(
    "version", ["", "latest", "v1.2.3", "../v1.2.3-4+0a1b2c3d", f"{VERSION}/x", f"{VERSION}\n", 7]
)
def test_a_wrong_version_name_is_refused(
    machine: FakeMachine, tmp_path: Path, version: Any
) -> None:
    artifact = pack(tmp_path / "a.tar.gz", contents(version))
    assert refused(machine, artifact).endswith("is not a release version")


def test_a_dirty_version_may_be_tried_on_a_machine(machine: FakeMachine, tmp_path: Path) -> None:
    version = f"{VERSION}.dirty.01234567"
    assert release.install(machine, pack(tmp_path / "a", contents(version)))["version"] == version


@pytest.mark.parametrize("name", ["/etc/evil", "../evil", "wheels/../../../evil"])
def test_a_path_that_leads_out_is_refused(machine: FakeMachine, tmp_path: Path, name: str) -> None:
    artifact = pack(tmp_path / "a.tar.gz", contents(), entry(name))
    assert "unsafe path" in refused(machine, artifact)
    assert not list(tmp_path.rglob("evil"))
    assert not Path("/etc/evil").exists()


@pytest.mark.parametrize(
    ("kind", "link"),
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.SYMTYPE, "api"),
        (tarfile.LNKTYPE, "api"),
        (tarfile.FIFOTYPE, ""),
        (tarfile.CHRTYPE, ""),
    ],
)
def test_only_plain_files_are_taken(
    machine: FakeMachine, tmp_path: Path, kind: bytes, link: str
) -> None:
    artifact = pack(tmp_path / "a.tar.gz", contents(), entry("thing", kind, link))
    assert "'thing' is not a plain file" in refused(machine, artifact)


@pytest.mark.parametrize("step", [" -m venv ", " pip install "])
def test_a_failed_installation_leaves_nothing(
    machine: FakeMachine, tmp_path: Path, step: str
) -> None:
    artifact = pack(tmp_path / "a.tar.gz", contents())
    machine.failing = [step]
    assert "failed" in refused(machine, artifact)
    machine.failing = []
    assert release.install(machine, artifact)["changed"] is True


@pytest.mark.parametrize("command", ["look", "unpack"])
def test_a_full_disk_is_not_called_a_damaged_artifact(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = pack(tmp_path / "a.tar.gz", contents())

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extract", full)
    monkeypatch.setattr(tarfile.TarFile, "extractfile", full)
    with pytest.raises(release.ReleaseError, match=r"^cannot .*: No space left on device$"):
        release.look(artifact, [TRUSTED]) if command == "look" else release._unpack(
            artifact, tmp_path
        )


def test_a_machine_that_was_not_provisioned_is_named_so(tmp_path: Path) -> None:
    machine = release.Machine(tmp_path)
    for work in (
        lambda: release.install(machine, pack(tmp_path / "a.tar.gz", contents())),
        lambda: release.activate(machine, VERSION),
    ):
        with pytest.raises(release.ReleaseError, match=r"run playbooks/provision\.yml first"):
            work()


def test_what_a_killed_installation_left_is_swept_away(
    machine: FakeMachine, tmp_path: Path
) -> None:
    (machine.releases / ".incoming-old/release").mkdir(parents=True)
    release.install(machine, pack(tmp_path / "a.tar.gz", contents()))
    assert machine.left() == [VERSION]


def test_two_runs_cannot_meet(machine: FakeMachine, tmp_path: Path) -> None:
    artifact = pack(tmp_path / "a.tar.gz", contents())
    with release._alone(machine):
        assert "another deployment is under way" in refused(machine, artifact)
        with pytest.raises(release.ReleaseError, match="another deployment is under way"):
            release.activate(machine, VERSION)
    assert release.install(machine, artifact)["changed"] is True


def test_a_terminated_installation_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "releases").mkdir()
    program = (
        "import importlib.util, os, pathlib, sys\n"
        f"spec = importlib.util.spec_from_file_location('tool', {str(PROGRAM)!r})\n"
        "tool = importlib.util.module_from_spec(spec); spec.loader.exec_module(tool)\n"
        f"machine = tool.Machine(pathlib.Path({str(tmp_path)!r}))\n"
        "tool.Machine = lambda python: machine\n"
        "tool._unpack = lambda *_: os.kill(os.getpid(), 15)\n"
        "sys.argv = ['release', 'install', 'a.tar.gz']\n"
        "tool.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "release: ended before it was done\n")
    assert not list((tmp_path / "releases").iterdir())


# -- who may sign, and what fits ---------------------------------------------------------------


def test_what_nobody_trusted_has_signed_is_refused(machine: FakeMachine, tmp_path: Path) -> None:
    files = contents()
    del files["manifest.sig"]
    assert refused(machine, pack(tmp_path / "a", files)) == "the artifact is not signed"
    untrusted = "no trusted key has signed the manifest of the artifact"
    assert untrusted in refused(machine, pack(tmp_path / "b", contents(key=OTHER_KEY)))
    for junk in (b"", b"junk\n", b"A" * 88):
        assert untrusted in refused(
            machine, pack(tmp_path / "c", contents() | {"manifest.sig": junk})
        )
    files = contents()
    files["manifest.json"] = files["manifest.json"].replace(b"v1.2.3", b"v9.9.9")
    assert untrusted in refused(machine, pack(tmp_path / "d", files))


def test_the_signature_holds_every_file(machine: FakeMachine, tmp_path: Path) -> None:
    """New checksums for a changed file are not those that were signed."""
    files = contents()
    papers = {name: files.pop(name) for name in release.PAPERS}
    files["api"] = b"#!/bin/evil\n"
    papers["checksums.sha256"] = checksums(files)
    assert refused(machine, pack(tmp_path / "a", files | papers)) == (
        "checksums.sha256 in the artifact does not match its manifest"
    )


def test_each_of_several_keys_may_sign(machine: FakeMachine, tmp_path: Path) -> None:
    machine.keys.write_text(f"{OTHER}\n{TRUSTED}\n")
    assert release.install(machine, pack(tmp_path / "a", contents()))["changed"]
    other = pack(tmp_path / "b", contents(NEWER, OTHER_KEY))
    assert release.install(machine, other)["changed"]


@pytest.mark.parametrize("keys", ["", "\n", None])
def test_a_machine_that_trusts_nobody_takes_nothing(
    machine: FakeMachine, tmp_path: Path, keys: str | None
) -> None:
    machine.keys.unlink() if keys is None else machine.keys.write_text(keys)
    assert "no key is trusted in" in refused(machine, pack(tmp_path / "a", contents()))


@pytest.mark.parametrize("key", ["junk", "A" * 43, "QUJD"])
def test_a_trusted_key_that_is_none_is_named(
    machine: FakeMachine, tmp_path: Path, key: str
) -> None:
    machine.keys.write_text(f"{key}\n")
    sentence = refused(machine, pack(tmp_path / "a", contents()))
    assert sentence == f"the trusted key {key!r} is none: Base64 of 32 bytes"


@pytest.mark.parametrize(
    ("floor", "taken"),
    [
        ("", True),
        (VERSION, True),
        ("v1.2.3-3+ffffffff", True),
        ("v1.2.3-10+00000000", False),
        ("v1.10.0-1+00000000", False),
        (NEWER, False),
    ],
)
def test_nothing_older_than_the_floor_is_installed(
    machine: FakeMachine, tmp_path: Path, floor: str, taken: bool
) -> None:
    machine.floor.write_text(f"{floor}\n")
    artifact = pack(tmp_path / "a", contents())
    if taken:
        assert release.install(machine, artifact)["changed"]
    else:
        words = f"{VERSION} is older than {floor}, the oldest that may be installed"
        assert refused(machine, artifact) == words


@pytest.mark.parametrize("wanted", ["==3.9.*", None])
def test_a_release_for_another_python_is_refused(
    machine: FakeMachine, tmp_path: Path, wanted: str | None
) -> None:
    artifact = pack(tmp_path / "a", contents(said={"requires_python": wanted}))
    words = f"{VERSION} needs Python {wanted}, and {sys.executable} is {PYTHON}"
    assert refused(machine, artifact) == words


# -- look ------------------------------------------------------------------------------------


def test_an_artifact_is_checked_where_it_lies(tmp_path: Path) -> None:
    files = contents()
    assert release.look(pack(tmp_path / "a.tar.gz", files), [TRUSTED]) == {
        "changed": False,
        "version": VERSION,
        "checksums": hashlib.sha256(files["checksums.sha256"]).hexdigest(),
    }


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        (signed(b"not JSON"), "no readable manifest"),
        (signed(b"[]"), "no readable manifest"),
        (signed(b'{"version": "v1"}', OTHER_KEY), "no readable manifest"),
        (contents("../../etc"), "'../../etc' is not a release version"),
        (contents(key=OTHER_KEY), "no trusted key has signed"),
    ],
)
def test_a_wrong_manifest_is_refused_where_it_lies(
    tmp_path: Path, manifest: dict[str, bytes], says: str
) -> None:
    artifact = pack(tmp_path / "a.tar.gz", contents() | manifest)
    with pytest.raises(release.ReleaseError, match=says):
        release.look(artifact, [TRUSTED])


def test_a_changed_or_damaged_file_is_refused_where_it_lies(tmp_path: Path) -> None:
    changed = pack(tmp_path / "a.tar.gz", contents() | {"api": b"#!/bin/sH\n"})
    with pytest.raises(release.ReleaseError, match="api in the artifact does not match"):
        release.look(changed, [TRUSTED])
    whole = pack(tmp_path / "b.tar.gz", contents(big=os.urandom(20_000)))
    for share in (0.2, 0.5, 0.8, 0.99):
        packed = bytearray(whole.read_bytes())
        packed[int(len(packed) * share)] ^= 0xFF
        damaged = tmp_path / "damaged.tar.gz"
        damaged.write_bytes(packed)
        with pytest.raises(release.ReleaseError, match=r"damaged\.tar\.gz is not a whole artifact"):
            release.look(damaged, [TRUSTED])


# -- activate --------------------------------------------------------------------------------


class Site:
    """What would answer on the services' ports: the live release, unless it is `broken`."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine
        self.broken: set[str] = set()
        #: What a service runs while it is not what is live: it was not restarted.
        self.running: dict[int, str] = {}
        self.asked: list[tuple[int, str]] = []
        self.now = 0.0

    def ask(self, port: int, path: str) -> tuple[int, dict[str, object]]:
        self.asked.append((port, path))
        version = self._machine.live_version()
        if version is None:
            raise ConnectionRefusedError("nobody listens")
        if path == "/version":
            return 200, {"version": self.running.get(port, version)}
        return (503, {"status": "unavailable"}) if version in self.broken else (200, {})

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def site(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> Site:
    site = Site(machine)
    monkeypatch.setattr(release, "_ask", site.ask)
    clock = SimpleNamespace(monotonic=lambda: site.now, sleep=site.sleep)
    monkeypatch.setattr(release, "time", clock)
    app = SimpleNamespace(pw_uid=999, pw_gid=998)
    monkeypatch.setattr(release, "pwd", SimpleNamespace(getpwnam=lambda _name: app))
    return site


def installed(machine: FakeMachine, tmp_path: Path, *versions: str) -> None:
    for version in versions:
        release.install(machine, pack(tmp_path / f"{version}.tar.gz", contents(version)))
    machine.commands.clear()


def units(verb: str, kind: str) -> str:
    return f"systemctl {verb} " + " ".join(f"tap-trading-{name}.{kind}" for name in SERVICES)


def test_the_first_release_goes_live(machine: FakeMachine, tmp_path: Path, site: Site) -> None:
    installed(machine, tmp_path, VERSION)
    assert release.activate(machine, VERSION) == {
        "changed": True,
        "version": VERSION,
        "previous": None,
        "removed": [],
    }
    assert machine.live_version() == VERSION
    assert machine.current.readlink() == Path("releases", VERSION)
    migrate, sockets, services = machine.commands
    assert migrate.startswith("setpriv --reuid=999 --regid=998 ")
    assert " env -i DB_PATH=/data/bets.db PRICES_DB_PATH=/data/prices.db " in migrate
    assert migrate.endswith(f" {machine.releases / VERSION / 'tap'} migrate")
    assert (sockets, services) == (units("start", "socket"), units("restart", "service"))
    assert {port for port, _ in site.asked} == {8080, 8081, 8090, 8091}
    assert {path for _, path in site.asked} == {"/version", "/healthz"}


@pytest.mark.usefixtures("site")
def test_activating_the_live_release_restarts_nothing(machine: FakeMachine, tmp_path: Path) -> None:
    installed(machine, tmp_path, VERSION)
    release.activate(machine, VERSION)
    machine.commands.clear()
    assert release.activate(machine, VERSION) == {"changed": False, "version": VERSION}
    assert machine.commands == [units("start", "socket"), units("start", "service")]


def test_an_interrupted_activation_is_finished_by_the_next(
    machine: FakeMachine, tmp_path: Path, site: Site
) -> None:
    """It ended between the switch and the restart of one service."""
    installed(machine, tmp_path, VERSION, NEWER)
    release.activate(machine, NEWER)
    machine.commands.clear()
    site.running = {8081: VERSION}
    run = machine.run

    def restarts(*command: str) -> str:
        if command == ("systemctl", "restart", "tap-trading-ws.service"):
            site.running = {}
        return run(*command)

    machine.run = restarts  # type: ignore[method-assign]
    assert release.activate(machine, NEWER) == {"changed": True, "version": NEWER}
    assert machine.commands[-1] == "systemctl restart tap-trading-ws.service"
    assert release.activate(machine, NEWER) == {"changed": False, "version": NEWER}


@pytest.mark.usefixtures("site")
def test_an_error_of_the_system_makes_room_too(machine: FakeMachine, tmp_path: Path) -> None:
    installed(machine, tmp_path, VERSION, NEWER)
    release.activate(machine, VERSION)
    run = machine.run

    def fails_with_the_new_one(*command: str) -> str:
        if command[1] == "restart" and machine.live_version() == NEWER:
            raise OSError(errno.EMFILE, "Too many open files")
        return run(*command)

    machine.run = fails_with_the_new_one  # type: ignore[method-assign]
    with pytest.raises(release.ReleaseError, match=r"Too many open files; .* is live again"):
        release.activate(machine, NEWER)
    assert machine.live_version() == VERSION


def test_a_missing_user_is_one_sentence(
    machine: FakeMachine, tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(machine, tmp_path, VERSION)

    def getpwnam(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(release, "pwd", SimpleNamespace(getpwnam=getpwnam))
    with pytest.raises(release.ReleaseError, match="there is no user app"):
        release.activate(machine, VERSION)
    assert machine.live_version() is None
    assert not site.asked


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            'LISTEN 0 5 0.0.0.0:8081 0.0.0.0:* users:(("python3",pid=4711,fd=3))\n',
            r"127\.0\.0\.1:8081 is in use by python3 \(process 4711\)",
        ),
        ("LISTEN 0 5 0.0.0.0:8081 0.0.0.0:*\n", "8081 is in use by another program"),
        ('LISTEN 0 5 [::]:8081 [::]:* users:(("api",pid=9,fd=3),("systemd",pid=1,fd=8))', "Job"),
    ],
)
def test_a_busy_port_is_named_with_who_has_it(
    machine: FakeMachine, tmp_path: Path, line: str, says: str
) -> None:
    installed(machine, tmp_path, VERSION)
    run = machine.run

    def busy(*command: str) -> str:
        if command[0] == "ss":
            return line if command[-1] == "sport = :8081" else ""
        if command[:3] == ("systemctl", "start", "tap-trading-api.socket"):
            raise release.ReleaseError("systemctl: Job for tap-trading-ws.socket failed.")
        return run(*command)

    machine.run = busy  # type: ignore[method-assign]
    with pytest.raises(release.ReleaseError, match=says):
        release.activate(machine, VERSION)


def test_a_release_that_does_not_work_makes_room_for_the_one_before(
    machine: FakeMachine, tmp_path: Path, site: Site
) -> None:
    installed(machine, tmp_path, VERSION, NEWER)
    release.activate(machine, VERSION)
    machine.commands.clear()
    site.broken = {NEWER}
    with pytest.raises(release.ReleaseError) as caught:
        release.activate(machine, NEWER)
    assert f"{NEWER} does not work: api is {NEWER}" in str(caught.value)
    assert f"{VERSION} is live again" in str(caught.value)
    assert machine.live_version() == VERSION
    assert machine.commands.count(units("restart", "service")) == 2
    assert machine.left() == [VERSION, NEWER]
    assert not list(machine.current.parent.glob(".current-*"))


@pytest.mark.usefixtures("site")
def test_a_restart_that_fails_makes_room_too(machine: FakeMachine, tmp_path: Path) -> None:
    """Only the first one fails: that of the new release."""
    installed(machine, tmp_path, VERSION, NEWER)
    release.activate(machine, VERSION)
    run = machine.run

    def fails_with_the_new_one(*command: str) -> str:
        if command[1] == "restart" and machine.live_version() == NEWER:
            raise release.ReleaseError("systemctl: Job failed")
        return run(*command)

    machine.run = fails_with_the_new_one  # type: ignore[method-assign]
    with pytest.raises(release.ReleaseError, match=r"Job failed; .* is live again"):
        release.activate(machine, NEWER)
    assert machine.live_version() == VERSION


@pytest.mark.usefixtures("site")
def test_when_nothing_starts_any_more_the_first_cause_is_still_told(
    machine: FakeMachine, tmp_path: Path
) -> None:
    installed(machine, tmp_path, VERSION, NEWER)
    release.activate(machine, VERSION)
    machine.failing = ["systemctl restart"]
    with pytest.raises(release.ReleaseError, match=f"{NEWER.replace('+', '.')} does not work"):
        release.activate(machine, NEWER)
    assert machine.live_version() == VERSION


def test_a_first_release_that_does_not_work_leaves_none_live(
    machine: FakeMachine, tmp_path: Path, site: Site
) -> None:
    installed(machine, tmp_path, VERSION)
    site.broken = {VERSION}
    with pytest.raises(release.ReleaseError, match="no release is live"):
        release.activate(machine, VERSION)
    assert machine.live_version() is None
    assert not machine.current.is_symlink()
    assert machine.commands[-2:] == [units("stop", "socket"), units("stop", "service")]
    site.broken = set()
    assert release.activate(machine, VERSION)["changed"] is True


@pytest.mark.usefixtures("site")
def test_a_failed_migration_changes_nothing(machine: FakeMachine, tmp_path: Path) -> None:
    installed(machine, tmp_path, VERSION, NEWER)
    release.activate(machine, VERSION)
    machine.commands.clear()
    machine.failing = ["migrate"]
    with pytest.raises(release.ReleaseError, match="migrate failed"):
        release.activate(machine, NEWER)
    assert machine.live_version() == VERSION
    assert not [line for line in machine.commands if "systemctl" in line]


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(("found", "taken"), [(0, True), (2, True), (4, True), (5, False)])
def test_a_release_for_another_schema_is_refused(
    machine: FakeMachine, tmp_path: Path, found: int, taken: bool
) -> None:
    said = {"schema": {"bets": [3, 4], "prices": [1, 2]}}
    release.install(machine, pack(tmp_path / "a.tar.gz", contents(said=said)))
    machine.schema["bets"] = found
    if taken:
        assert release.activate(machine, VERSION)["changed"]
        return
    with pytest.raises(release.ReleaseError) as caught:
        release.activate(machine, VERSION)
    assert str(caught.value) == (
        f"{VERSION} is built for another schema: it runs on 3 and 4 of bets.db, which is at 5"
    )
    assert machine.live_version() is None
    assert not [line for line in machine.commands if "migrate" in line or "systemctl" in line]


# -- what is kept, and going back ---------------------------------------------------------------


def numbered(number: int) -> str:
    return f"v2.0.0-{number}+0a1b2c3d"


@pytest.mark.usefixtures("site")
def test_the_last_five_that_worked_are_kept(machine: FakeMachine, tmp_path: Path) -> None:
    for number in range(1, 9):
        installed(machine, tmp_path, numbered(number))
        done = release.activate(machine, numbered(number))
        assert done["removed"] == ([numbered(number - 5)] if number > 5 else [])
    assert machine.left() == [numbered(number) for number in range(4, 9)]
    assert (machine.live_version(), machine.previous_version()) == (numbered(8), numbered(7))


def test_pinned_ones_stay_and_failed_ones_go(
    machine: FakeMachine, tmp_path: Path, site: Site
) -> None:
    pinned, bad, waiting = numbered(1), numbered(2), numbered(99)
    installed(machine, tmp_path, pinned, bad, waiting)
    release.activate(machine, pinned)
    assert release.pin(machine, pinned, pinned=True)["changed"]
    assert not release.pin(machine, pinned, pinned=True)["changed"]
    site.broken = {bad}
    with pytest.raises(release.ReleaseError, match="does not work"):
        release.activate(machine, bad)
    assert bad in machine.left()  # to be looked at
    for number in range(3, 10):
        installed(machine, tmp_path, numbered(number))
        release.activate(machine, numbered(number))
    assert machine.left() == [pinned, *(numbered(n) for n in range(5, 10)), waiting]
    assert release.pin(machine, pinned, pinned=False)["changed"]
    release.activate(machine, numbered(8))
    assert pinned not in machine.left()
    for wrong in ("v9", "../releases", VERSION):
        with pytest.raises(release.ReleaseError, match="is not installed"):
            release.pin(machine, wrong, pinned=True)


@pytest.mark.usefixtures("site")
def test_the_release_before_the_live_one_is_kept_however_old(
    machine: FakeMachine, tmp_path: Path
) -> None:
    installed(machine, tmp_path, *(numbered(number) for number in range(1, 8)))
    release.activate(machine, numbered(1))
    for number in range(2, 7):
        release.activate(machine, numbered(number))
        release.rollback(machine)
    assert machine.live_version() == numbered(1)
    assert machine.previous_version() == numbered(6)
    assert numbered(7) in machine.left()  # never tried


def test_rolling_back_goes_the_way_of_a_deploy(
    machine: FakeMachine, tmp_path: Path, site: Site
) -> None:
    installed(machine, tmp_path, VERSION, NEWER)
    with pytest.raises(release.ReleaseError, match="no release before the live one"):
        release.rollback(machine)
    release.activate(machine, VERSION)
    release.activate(machine, NEWER)
    machine.commands.clear()
    assert release.rollback(machine)["version"] == VERSION
    assert machine.live_version() == VERSION
    assert [line for line in machine.commands if line.endswith("/tap migrate")]
    assert units("restart", "service") in machine.commands
    site.broken = {NEWER}
    with pytest.raises(release.ReleaseError, match=f"{re.escape(VERSION)} is live again"):
        release.rollback(machine)
    assert machine.live_version() == VERSION


def test_everything_that_was_done_or_refused_is_on_record(
    machine: FakeMachine, tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release, "Machine", lambda **_: machine)

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["release", "--by=ada@desk", *words])
        try:
            release.main()
        except SystemExit as end:
            return str(end.code)
        return ""

    first, second = (
        str(pack(tmp_path / f"{version}.tar.gz", contents(version))) for version in (VERSION, NEWER)
    )
    assert run("install", first) == run("activate", VERSION) == run("install", second) == ""
    assert run("install", first) == run("activate", VERSION) == run("current") == ""
    site.broken = {NEWER}
    failed = run("activate", NEWER)
    assert "does not work" in failed
    site.broken = set()
    assert run("activate", NEWER) == run("rollback") == run("pin", NEWER) == ""
    assert "is not installed" in run("unpin", "v9")
    lines = [json.loads(line) for line in machine.log.read_text().splitlines()]
    assert {line["by"] for line in lines} == {"ada@desk"}
    assert [(line["what"], line.get("version"), "failed" in line) for line in lines] == [
        ("install", VERSION, False),
        ("activate", VERSION, False),
        ("install", NEWER, False),
        ("activate", NEWER, True),
        ("activate", NEWER, False),
        ("rollback", VERSION, False),
        ("pin", NEWER, False),
        ("unpin", "v9", True),
    ]
    assert f"release: {lines[3]['failed']}" == failed
    assert lines[5]["previous"] == NEWER
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]{12}Z", line["at"]) for line in lines)


def test_a_log_that_takes_no_line_stops_nothing(
    machine: FakeMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.log.mkdir()
    machine.note(what="pin")
    assert f"{machine.log} takes no line" in capsys.readouterr().err


@pytest.mark.usefixtures("site")
def test_what_is_not_installed_cannot_go_live(machine: FakeMachine) -> None:
    with pytest.raises(release.ReleaseError, match="v9 is not installed"):
        release.activate(machine, "v9")
    assert machine.commands == []


# -- the smoke test --------------------------------------------------------------------------


@pytest.fixture
def answers() -> Iterator[Callable[..., int]]:
    """`answers(version, health)`: the port of a real server that says so."""
    servers: list[HTTPServer] = []

    def serve(version: object, health: int = 200, body: bytes = b"") -> int:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if self.path == "/version" else health)
                self.end_headers()
                self.wfile.write(body or json.dumps({"version": version}).encode())

            def log_message(self, *_: object) -> None:
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1].server_port

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_smoke_test_asks_every_service(answers: Callable[..., int]) -> None:
    release._smoke_test(VERSION, {"api": answers(VERSION), "ws": answers(VERSION)}, 1)


def test_the_smoke_test_names_who_fails_and_what_it_saw(answers: Callable[..., int]) -> None:
    good = answers(VERSION)
    for service, wrong, seen in [
        ("ws", answers(NEWER), rf"ws is {NEWER}".replace("+", r"\+")),
        ("api", answers(VERSION, 503), "api is .* and says"),
        ("price", answers("", body=b"<html>"), r"price does not answer \(Expecting value"),
        ("price", answers("", body=b"[]"), r"price does not answer \(\[\] is not an object"),
        ("price", 1, r"price does not answer \(.*refused"),
    ]:
        with pytest.raises(release.ReleaseError, match=seen):
            release._smoke_test(VERSION, {"good": good, service: wrong}, 0)


# -- as a program ----------------------------------------------------------------------------


def test_a_failing_program_is_one_sentence(tmp_path: Path) -> None:
    machine = release.Machine(tmp_path)
    with pytest.raises(release.ReleaseError, match=r"^/bin/sh: one / two$"):
        machine.run("/bin/sh", "-c", "echo one >&2; echo two >&2; exit 3")
    with pytest.raises(release.ReleaseError, match=r"^/bin/false: 1$"):
        machine.run("/bin/false")
    with pytest.raises(release.ReleaseError, match="/nowhere/python"):
        machine.run("/nowhere/python", "-m", "venv")


def test_the_program_runs_with_the_machines_own_python() -> None:
    done = subprocess.run(
        [sys.executable, "-I", PROGRAM, "--help"], capture_output=True, text=True, check=True
    )
    assert "install" in done.stdout
    assert "activate" in done.stdout


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11) and not shutil.which("python3.11"),
    reason="without a Python 3.11, the machine's, the real artifact was NOT installed",
)
def test_the_real_artifact_installs_and_runs_without_network(
    artifact: Path, tmp_path: Path
) -> None:
    python = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11")
    machine = release.Machine(tmp_path, str(python), tmp_path)
    machine.releases.mkdir()
    shutil.copy(ROOT / ".keys/release.pub", machine.keys)
    installed = release.install(machine, artifact)
    folder = machine.releases / str(installed["version"])
    for program in SERVICES:
        assert os.access(folder / program, os.X_OK)
    done = subprocess.run(
        [folder / "tap", "version"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"version: {installed['version']}\n" in done.stdout
    schema = json.loads((folder / "manifest.json").read_text())["schema"]
    databases = {
        "DB_PATH": str(tmp_path / "bets.db"),
        "PRICES_DB_PATH": str(tmp_path / "prices.db"),
    }

    def tap(*words: str) -> str:
        return subprocess.run(
            [folder / "tap", *words],
            env={"PATH": "/usr/bin:/bin", **databases},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert json.loads(tap("schema")) == dict.fromkeys(schema, 0)
    migrated = tap("migrate")
    assert json.loads(tap("schema")) == {name: oldest for name, (oldest, _) in schema.items()}
    assert f"applied 001_initial.sql to {tmp_path}/bets.db" in migrated
    assert f"applied 001_prices.sql to {tmp_path}/prices.db" in migrated
    # With what is installed the arithmetic really works, not only our own modules.
    subprocess.run(
        [folder / "venv/bin/python", "-I", "-c", "import numpy; from scipy import special"],
        check=True,
    )
    assert release.install(machine, artifact)["changed"] is False
