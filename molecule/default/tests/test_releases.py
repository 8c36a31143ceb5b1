"""Deploying: what is broken is refused or taken back, and the site goes on serving."""

import base64
import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey
from testinfra.host import Host

from e2e.site.machine import ROOT, Machine

ARTIFACT = ROOT / "dist" / "latest.tar.gz"
#: A version no commit has.
OTHER = "v9.9.9-999999+badbadbad"
PAPERS = ("checksums.sha256", "manifest.json", "manifest.sig")
Deploy = Callable[[Path], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def deploy(playbook: Callable[..., subprocess.CompletedProcess[str]]) -> Deploy:
    return lambda artifact: playbook("deploy.yml", "-e", f"release_artifact={artifact}")


@pytest.fixture
def live(host: Host, machine: Machine, site: Any) -> Iterator[str]:
    """The live version, which is still the live one afterwards; nothing else is left."""
    before = host.check_output("readlink /opt/app/current")
    yield before.removeprefix("releases/")
    assert host.check_output("readlink /opt/app/current") == before
    left = host.check_output("ls -A /opt/app/releases").split()
    machine.run(f"rm -rf '/opt/app/releases/{OTHER}'")
    site.wait_until_healthy()
    assert [name for name in left if name.startswith(".")] == []


def main_pids(host: Host) -> list[str]:
    units = " ".join(f"tap-trading-{name}.service" for name in ("api", "ws", "price", "resolver"))
    return host.check_output(f"systemctl show --property=MainPID --value {units}").split()


def repack(
    target: Path,
    changes: dict[str, bytes],
    *,
    sums: bool,
    said: dict[str, object] | None = None,
    key: SigningKey | None = None,
) -> Path:
    """A copy of the artifact as version OTHER with some files replaced; `sums`: and listed so.

    `said` replaces what its manifest says, and `key` signs that instead of our own.
    """
    files: dict[str, tuple[bytes, int]] = {}
    with tarfile.open(ARTIFACT) as archive:
        for member in archive:
            if member.isfile():
                files[member.name] = (archive.extractfile(member).read(), member.mode)  # type: ignore[union-attr] # a file
    papers = {name: files.pop(name)[0] for name in PAPERS}
    listed = files | (with_modes(files, changes) if sums else {})
    lines = [
        f"{hashlib.sha256(content).hexdigest()}  {name}\n"
        for name, (content, _) in sorted(listed.items())
    ]
    papers["checksums.sha256"] = "".join(lines).encode()
    manifest = json.loads(papers["manifest.json"]) | {
        "version": OTHER,
        "checksums": hashlib.sha256(papers["checksums.sha256"]).hexdigest(),
        **(said or {}),
    }
    papers["manifest.json"] = json.dumps(manifest, indent=2).encode()
    signer = key or SigningKey(base64.b64decode((ROOT / ".keys/release.key").read_text()))
    papers["manifest.sig"] = base64.b64encode(signer.sign(papers["manifest.json"]).signature)
    files |= with_modes(files, changes) | {name: (text, 0o644) for name, text in papers.items()}
    # Level 1: most of it is wheels, which are packed already.
    with (
        gzip.open(target, "wb", compresslevel=1) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        for name, (content, mode) in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), mode
            archive.addfile(member, io.BytesIO(content))
    return target


def with_modes(
    files: dict[str, tuple[bytes, int]], changes: dict[str, bytes]
) -> dict[str, tuple[bytes, int]]:
    return {name: (content, files[name][1]) for name, content in changes.items()}


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a deployment that failed."""
    assert done.returncode != 0
    said = re.search(r"^    msg: (.+?)\n\n", done.stdout, re.DOTALL | re.MULTILINE)
    assert said, done.stdout
    return " ".join(said[1].strip("'\"").split())


@pytest.mark.units("tap-trading-*")
def test_an_artifact_that_does_not_match_its_checksums_is_refused(
    deploy: Deploy, live: str, tmp_path: Path, host: Host
) -> None:
    before = main_pids(host)
    done = deploy(repack(tmp_path / "a.tar.gz", {"tap": b"#!/bin/sh\n"}, sums=False))
    assert "tap in the artifact does not match its checksum" in sentence(done)
    assert main_pids(host) == before
    assert OTHER not in host.check_output("ls /opt/app/releases")


def test_what_no_trusted_key_has_signed_is_refused(
    playbook: Callable[..., subprocess.CompletedProcess[str]], deploy: Deploy, live: str,
    tmp_path: Path, host: Host,
) -> None:  # fmt: skip
    before = main_pids(host)
    stranger = SigningKey.generate()
    artifact = repack(tmp_path / "a.tar.gz", {}, sums=True, key=stranger)
    assert "no trusted key has signed the manifest of the artifact" in sentence(deploy(artifact))
    none = playbook(
        "deploy.yml", "-e", f"release_artifact={artifact}", "-e", '{"release_public_keys": []}'
    )
    assert "release_public_keys names nobody who may sign releases" in sentence(none)
    assert main_pids(host) == before
    assert OTHER not in host.check_output("ls /opt/app/releases")


def test_what_does_not_fit_is_refused(
    playbook: Callable[..., subprocess.CompletedProcess[str]], deploy: Deploy, live: str,
    tmp_path: Path, host: Host,
) -> None:  # fmt: skip
    before = main_pids(host)
    schema = {"schema": {"bets": [1, 2], "prices": [1, 2]}}
    other = repack(tmp_path / "a.tar.gz", {}, sums=True, said=schema)
    said = sentence(deploy(other))
    assert f"{OTHER} is built for another schema: it runs on 1 and 2 of bets.db" in said
    floor = "v10.0.0-1+00000000"
    old = repack(tmp_path / "b.tar.gz", {}, sums=True, said={"version": f"{OTHER[:-1]}e"})
    done = playbook("deploy.yml", "-e", f"release_artifact={old}", "-e", f"release_floor={floor}")
    assert f"is older than {floor}, the oldest that may be installed" in sentence(done)
    playbook("deploy.yml", "-e", f"release_artifact={ROOT / 'dist'}/tap-trading-{live}.tar.gz")
    assert main_pids(host) == before
    assert host.file("/etc/tap-trading/release-floor").content_string == "\n"


def test_an_artifact_with_a_flipped_byte_is_refused(
    deploy: Deploy, live: str, tmp_path: Path, host: Host
) -> None:
    before = main_pids(host)
    broken = bytearray(ARTIFACT.read_bytes())
    broken[len(broken) // 2] ^= 0xFF
    copy = tmp_path / ARTIFACT.resolve().name
    copy.write_bytes(broken)
    done = deploy(copy)
    assert f"{copy.name} is not a whole artifact (" in sentence(done)
    assert "changed=0" in done.stdout
    assert main_pids(host) == before


@pytest.mark.units("tap-trading-*")
def test_a_release_that_does_not_start_gives_way_to_the_previous_one(
    deploy: Deploy, live: str, tmp_path: Path, site: Any, measured: Callable[[str], None]
) -> None:
    bad = repack(tmp_path / "b.tar.gz", {"api": b"#!/bin/sh\nexit 1\n"}, sums=True)
    said = sentence(deploy(bad))
    measured(f"a bad release, {said}")
    assert f"{OTHER} does not work" in said
    assert f"{live} is live again" in said
    for port in (8080, 8081, 8090, 8091):
        assert site.get(f"http://127.0.0.1:{port}/version").json["version"] == live
    site.wait_until_healthy()


@pytest.fixture
def another(tmp_path: Path) -> Path:
    """The artifact of a checkout that differs in one line."""
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "--quiet", ROOT, checkout], check=True)
    shutil.copytree(ROOT / ".keys", checkout / ".keys")
    (checkout / ".cache").symlink_to(ROOT / ".cache")
    with (checkout / "app/src/tap_trading/__init__.py").open("a") as module:
        module.write("# another build\n")
    command = [sys.executable, checkout / "scripts/build.py"]
    built = subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True)
    return checkout / built.stdout.strip()


@pytest.mark.units("tap-trading-*")
def test_another_build_goes_live_and_is_rolled_back(
    playbook: Callable[..., subprocess.CompletedProcess[str]], live: str,
    another: Path, host: Host, machine: Machine, site: Any, place_bet: Any,
) -> None:  # fmt: skip
    version = another.name.removeprefix("tap-trading-").removesuffix(".tar.gz")
    assert version != live
    done = playbook("deploy.yml", "-e", f"release_artifact={another}")
    assert done.returncode == 0, done.stdout
    for port in (8080, 8081, 8090, 8091):
        assert site.get(f"http://127.0.0.1:{port}/version").json["version"] == version
    bet = place_bet().json["bet_id"]
    assert host.check_output("readlink /opt/app/previous") == f"releases/{live}"
    done = playbook("rollback.yml")
    assert done.returncode == 0, done.stdout
    assert host.check_output("readlink /opt/app/current") == f"releases/{live}"
    assert site.look_up(bet)["bet_id"] == bet
    log = host.check_output("tail -n 3 /opt/app/releases.jsonl").splitlines()
    installed, activated, back = map(json.loads, log)
    assert (installed["what"], installed["version"]) == ("install", version)
    assert (activated["what"], activated["previous"]) == ("activate", live)
    assert (back["what"], back["version"], back["previous"]) == ("rollback", live, version)
    assert "@" in back["by"]
    machine.run(f"rm -rf '/opt/app/releases/{version}' /opt/app/previous")


@pytest.mark.units("tap-trading-*")
def test_deploying_the_live_release_again_changes_nothing(
    playbook: Callable[..., subprocess.CompletedProcess[str]], live: str, host: Host
) -> None:
    before = main_pids(host)
    artifact = ROOT / "dist" / f"tap-trading-{live}.tar.gz"
    done = playbook("deploy.yml", "-e", f"release_artifact={artifact}")
    assert done.returncode == 0, done.stdout
    assert "changed=0" in done.stdout
    assert main_pids(host) == before
