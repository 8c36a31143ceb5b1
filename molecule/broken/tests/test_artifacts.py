"""Artifacts that are not what they should be: refused, and nothing is changed."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from nacl.signing import SigningKey
from testinfra.host import Host

from e2e.site.machine import ROOT
from e2e.site.releases import ARTIFACT, OTHER, repack, sentence

pytestmark = pytest.mark.units("tap-trading-*")
Run = Callable[..., "subprocess.CompletedProcess[str]"]
OTHERS = {"version": OTHER}


@pytest.fixture
def untouched(host: Host) -> Callable[[], None]:
    """No process is another one afterwards, and no release was installed."""

    def seen() -> tuple[str, str]:
        units = "systemctl show --property=MainPID 'tap-trading-*.service'"
        return host.check_output(units), host.check_output("ls -A /opt/app/releases")

    before = seen()

    def check() -> None:
        assert seen() == before

    return check


@pytest.mark.usefixtures("live")
def test_one_that_does_not_match_its_checksums_is_refused(
    deploy: Run, tmp_path: Path, untouched: Callable[[], None]
) -> None:
    altered = repack(
        ARTIFACT, tmp_path / "a.tar.gz", {"tap": "#!/bin/sh\n"}, sums=False, said=OTHERS
    )
    said = sentence(deploy(altered))
    assert "tap in the artifact does not match its checksum, so nothing was deployed" in said
    untouched()


@pytest.mark.usefixtures("live")
def test_what_no_trusted_key_has_signed_is_refused(
    deploy: Run, tmp_path: Path, untouched: Callable[[], None]
) -> None:
    stranger = SigningKey.generate()
    artifact = repack(ARTIFACT, tmp_path / "a.tar.gz", {}, said=OTHERS, key=stranger)
    assert "no trusted key has signed the manifest of the artifact" in sentence(deploy(artifact))
    none = deploy(artifact, "-e", '{"release_public_keys": []}')
    assert "release_public_keys names nobody who may sign releases" in sentence(none)
    untouched()


def test_what_does_not_fit_is_refused(
    deploy: Run, live: str, tmp_path: Path, untouched: Callable[[], None], host: Host
) -> None:
    floor = "v10.0.0-1+00000000"
    old = repack(ARTIFACT, tmp_path / "b.tar.gz", {}, said=OTHERS)
    done = deploy(old, "-e", f"release_floor={floor}")
    assert f"is older than {floor}, the oldest that may be installed" in sentence(done)
    again = deploy(ROOT / "dist" / f"tap-trading-{live}.tar.gz")
    assert again.returncode == 0, again.stdout
    untouched()
    assert host.file("/etc/tap-trading/release-floor").content_string == "\n"


@pytest.mark.usefixtures("live")
def test_one_for_another_schema_is_refused(deploy: Run, tmp_path: Path) -> None:
    schema = {"schema": {"bets": [1, 2], "prices": [1, 2]}}
    said = sentence(deploy(repack(ARTIFACT, tmp_path / "a.tar.gz", {}, said=OTHERS | schema)))
    assert f"{OTHER} is built for another schema: it runs on 1 and 2 of bets.db" in said


@pytest.mark.usefixtures("live")
def test_one_with_a_flipped_byte_is_refused(
    deploy: Run, tmp_path: Path, untouched: Callable[[], None]
) -> None:
    broken = bytearray(ARTIFACT.read_bytes())
    broken[len(broken) // 2] ^= 0xFF
    copy = tmp_path / ARTIFACT.resolve().name
    copy.write_bytes(broken)
    done = deploy(copy)
    assert f"{copy.name} is not a whole artifact (" in sentence(done)
    assert "changed=0" in done.stdout
    untouched()
