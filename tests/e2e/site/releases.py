"""Releases for tests of deployments: other builds, broken ones, and what became of deploying one."""

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
from pathlib import Path

from nacl.signing import SigningKey

from e2e.site.machine import ROOT

ARTIFACT = ROOT / "dist" / "latest.tar.gz"
#: A version no commit has.
OTHER = "v9.9.9-999999+badbadbad"
PAPERS = ("checksums.sha256", "manifest.json", "manifest.sig")


def version_of(artifact: Path) -> str:
    """The version that an artifact's name says."""
    return artifact.resolve().name.removeprefix("tap-trading-").removesuffix(".tar.gz")


def build(checkout: Path, changes: dict[str, str]) -> Path:
    """The artifact of a new clone of this checkout with these lines added to files of it."""
    subprocess.run(["git", "clone", "--quiet", ROOT, checkout], check=True)
    shutil.copytree(ROOT / ".keys", checkout / ".keys")
    (checkout / ".cache").symlink_to(ROOT / ".cache")
    for name, lines in changes.items():
        with (checkout / name).open("a") as file:
            file.write(lines)
    command = [sys.executable, checkout / "scripts/build.py"]
    built = subprocess.run(command, cwd=checkout, check=True, capture_output=True, text=True)
    return checkout / built.stdout.strip()


def repack(
    source: Path,
    target: Path,
    changes: dict[str, str],
    *,
    sums: bool = True,
    said: dict[str, object] | None = None,
    key: SigningKey | None = None,
) -> Path:
    """A copy of an artifact with some files replaced; `sums`: and listed so.

    `said` replaces what its manifest says, and `key` signs that instead of our own.
    """
    files: dict[str, tuple[bytes, int]] = {}
    with tarfile.open(source) as archive:
        for member in archive:
            if member.isfile():
                files[member.name] = (archive.extractfile(member).read(), member.mode)  # type: ignore[union-attr] # a file
    papers = {name: files.pop(name)[0] for name in PAPERS}
    changed = {name: (text.encode(), files[name][1]) for name, text in changes.items()}
    listed = files | (changed if sums else {})
    lines = [
        f"{hashlib.sha256(content).hexdigest()}  {name}\n"
        for name, (content, _) in sorted(listed.items())
    ]
    papers["checksums.sha256"] = "".join(lines).encode()
    manifest = json.loads(papers["manifest.json"]) | {
        "checksums": hashlib.sha256(papers["checksums.sha256"]).hexdigest(),
        **(said or {}),
    }
    papers["manifest.json"] = json.dumps(manifest, indent=2).encode()
    signer = key or SigningKey(base64.b64decode((ROOT / ".keys/release.key").read_text()))
    papers["manifest.sig"] = base64.b64encode(signer.sign(papers["manifest.json"]).signature)
    files |= changed | {name: (text, 0o644) for name, text in papers.items()}
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


def launcher(module: str, before: str) -> str:
    """What starts a service of a release, with lines of shell that come first.

    `$$` is the service itself, and `live` there waits until its release is the live one.
    """
    return f"""#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
live() {{ until [ "$(readlink -f /opt/app/current)" = "$here" ]; do sleep 0.1; done; }}
{before}
exec "$here/venv/bin/python" -I -m tap_trading.services.{module} "$@"
"""


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a playbook that failed."""
    assert done.returncode != 0, done.stdout
    said = re.search(r"^    msg: (.+?)\n\n", done.stdout, re.DOTALL | re.MULTILINE)
    assert said, done.stdout
    return " ".join(said[1].strip("'\"").split())
