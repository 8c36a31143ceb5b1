"""The release tool: which artifacts a machine takes, and what is left of those it does not."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from tap_release import artifact as artifacts
from tap_release import deployment, lock
from tap_release.machine import Machine, ReleaseError
from tests.conftest import ROOT
from tests.release.fake_machine import (
    NEWER,
    OTHER,
    OTHER_KEY,
    PYTHON,
    SERVICES,
    TRUSTED,
    VERSION,
    FakeMachine,
    checksums,
    contents,
    entry,
    pack,
    signed,
)

PROGRAM = ROOT / "roles/release/files/release"


def refused(machine: FakeMachine, artifact: Path) -> str:
    """The one sentence with which an artifact is refused; nothing is left of it."""
    before = machine.left()
    with pytest.raises(ReleaseError) as caught:
        artifacts.install(machine, artifact)
    assert machine.left() == before
    assert not machine.current.exists()
    sentence = str(caught.value)
    assert sentence
    assert "\n" not in sentence
    return sentence


# -- install ---------------------------------------------------------------------------------


def test_a_good_artifact_is_installed_once(machine: FakeMachine, tmp_path: Path) -> None:
    artifact = pack(tmp_path / "a.tar.gz", contents())
    assert artifacts.install(machine, artifact) == {"changed": True, "version": VERSION}
    folder = machine.releases / VERSION
    assert machine.left() == [VERSION]
    assert os.access(folder / "api", os.X_OK)
    assert not os.access(folder / "requirements.txt", os.X_OK) or os.getuid() == 0
    assert (folder / "requirements.txt").stat().st_mode & 0o777 == 0o644
    assert (folder / "venv/bin").is_dir()
    assert not (folder / "wheels").exists()
    assert folder.stat().st_mode & 0o777 == 0o755

    machine.commands.clear()
    assert artifacts.install(machine, artifact) == {"changed": False, "version": VERSION}
    assert not [line for line in machine.commands if " -m " in line]
    assert machine.left() == [VERSION]


def test_dependencies_come_from_the_artifact_alone(machine: FakeMachine, tmp_path: Path) -> None:
    artifacts.install(machine, pack(tmp_path / "a.tar.gz", contents()))
    (pip,) = [line for line in machine.commands if " install --quiet " in line]
    for word in ("--no-index", "--require-hashes", "--no-deps", "--find-links", "-I"):
        assert f" {word} " in pip


def test_a_second_release_goes_beside_the_first(machine: FakeMachine, tmp_path: Path) -> None:
    artifacts.install(machine, pack(tmp_path / "a.tar.gz", contents()))
    artifacts.install(machine, pack(tmp_path / "b.tar.gz", contents(NEWER)))
    assert machine.left() == [VERSION, NEWER]


def test_another_build_of_an_installed_version_is_refused(
    machine: FakeMachine, tmp_path: Path
) -> None:
    artifacts.install(machine, pack(tmp_path / "a.tar.gz", contents()))
    before = (machine.releases / VERSION / "checksums.sha256").read_bytes()
    other = pack(tmp_path / "b.tar.gz", contents(more=b"1"))
    with pytest.raises(ReleaseError, match=r"another build of v1\.2\.3-4"):
        artifacts.install(machine, other)
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
    assert artifacts.install(machine, pack(tmp_path / "a", contents(version)))["version"] == version


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


@pytest.mark.parametrize("step", [" -m venv ", " install --quiet ", " -m compileall "])
def test_a_failed_installation_leaves_nothing(
    machine: FakeMachine, tmp_path: Path, step: str
) -> None:
    artifact = pack(tmp_path / "a.tar.gz", contents())
    machine.failing = [step]
    assert "failed" in refused(machine, artifact)
    machine.failing = []
    assert artifacts.install(machine, artifact)["changed"] is True


@pytest.mark.parametrize("command", ["look", "unpack"])
def test_a_full_disk_is_not_called_a_damaged_artifact(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = pack(tmp_path / "a.tar.gz", contents())

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extract", full)
    monkeypatch.setattr(tarfile.TarFile, "extractfile", full)
    with pytest.raises(ReleaseError, match=r"^cannot .*: No space left on device$"):
        artifacts.look(artifact, [TRUSTED]) if command == "look" else artifacts._unpack(
            artifact, tmp_path
        )


def test_a_machine_that_was_not_provisioned_is_named_so(tmp_path: Path) -> None:
    with (
        pytest.raises(ReleaseError, match=r"run playbooks/provision\.yml first"),
        deployment.alone(Machine(tmp_path)),
    ):
        pass


def test_what_a_killed_installation_left_is_swept_away(
    machine: FakeMachine, tmp_path: Path
) -> None:
    (machine.releases / ".incoming-old/release").mkdir(parents=True)
    artifacts.install(machine, pack(tmp_path / "a.tar.gz", contents()))
    assert machine.left() == [VERSION]


def test_two_runs_cannot_meet(machine: FakeMachine) -> None:
    with deployment.alone(machine):
        with (
            pytest.raises(ReleaseError, match=r"^another deployment is under way on this machine$"),
            deployment.alone(machine),
        ):
            pass
        lock.take(machine, "ada@desk", "deploy v2")
        with (
            pytest.raises(ReleaseError, match=r"under way on this machine: ada@desk has locked"),
            deployment.alone(machine),
        ):
            pass
    with deployment.alone(machine):
        pass


def test_a_terminated_installation_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "releases").mkdir()
    program = (
        "import os, pathlib, runpy, sys\n"
        f"sys.path.insert(0, {str(PROGRAM)!r})\n"
        "from tap_release import artifact, machine\n"
        f"places = machine.Machine(pathlib.Path({str(tmp_path)!r}))\n"
        "machine.Machine = lambda python: places\n"
        "artifact._unpack = lambda *_: os.kill(os.getpid(), 15)\n"
        "sys.argv = ['release', 'install', 'a.tar.gz']\n"
        f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')\n"
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
    papers = {name: files.pop(name) for name in artifacts.PAPERS}
    files["api"] = b"#!/bin/evil\n"
    papers["checksums.sha256"] = checksums(files)
    assert refused(machine, pack(tmp_path / "a", files | papers)) == (
        "checksums.sha256 in the artifact does not match its manifest"
    )


def test_each_of_several_keys_may_sign(machine: FakeMachine, tmp_path: Path) -> None:
    machine.keys.write_text(f"{OTHER}\n{TRUSTED}\n")
    assert artifacts.install(machine, pack(tmp_path / "a", contents()))["changed"]
    other = pack(tmp_path / "b", contents(NEWER, OTHER_KEY))
    assert artifacts.install(machine, other)["changed"]


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
        assert artifacts.install(machine, artifact)["changed"]
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
    assert artifacts.look(pack(tmp_path / "a.tar.gz", files), [TRUSTED]) == {
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
    with pytest.raises(ReleaseError, match=says):
        artifacts.look(artifact, [TRUSTED])


def test_a_changed_or_damaged_file_is_refused_where_it_lies(tmp_path: Path) -> None:
    changed = pack(tmp_path / "a.tar.gz", contents() | {"api": b"#!/bin/sH\n"})
    with pytest.raises(ReleaseError, match="api in the artifact does not match"):
        artifacts.look(changed, [TRUSTED])
    whole = pack(tmp_path / "b.tar.gz", contents(big=os.urandom(20_000)))
    for share in (0.2, 0.5, 0.8, 0.99):
        packed = bytearray(whole.read_bytes())
        packed[int(len(packed) * share)] ^= 0xFF
        damaged = tmp_path / "damaged.tar.gz"
        damaged.write_bytes(packed)
        with pytest.raises(ReleaseError, match=r"damaged\.tar\.gz is not a whole artifact"):
            artifacts.look(damaged, [TRUSTED])


# -- as a program ----------------------------------------------------------------------------


def test_a_failing_program_is_one_sentence(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    with pytest.raises(ReleaseError, match=r"^/bin/sh: one / two$"):
        machine.run("/bin/sh", "-c", "echo one >&2; echo two >&2; exit 3")
    with pytest.raises(ReleaseError, match=r"^/bin/false: 1$"):
        machine.run("/bin/false")
    with pytest.raises(ReleaseError, match="/nowhere/python"):
        machine.run("/nowhere/python", "-m", "venv")


def test_the_program_runs_with_the_machines_own_python() -> None:
    done = subprocess.run(
        [sys.executable, "-I", PROGRAM, "--help"], capture_output=True, text=True, check=True
    )
    assert "install" in done.stdout
    assert "deploy" in done.stdout


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11) and not shutil.which("python3.11"),
    reason="without a Python 3.11, the machine's, the real artifact was NOT installed",
)
def test_the_real_artifact_installs_and_runs_without_network(
    artifact: Path, tmp_path: Path
) -> None:
    python = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11")
    machine = Machine(tmp_path, str(python), tmp_path)
    machine.releases.mkdir()
    machine.keys.parent.mkdir()
    shutil.copy(ROOT / ".keys/release.pub", machine.keys)
    installed = artifacts.install(machine, artifact)
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
    assert artifacts.install(machine, artifact)["changed"] is False
