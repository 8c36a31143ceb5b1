"""Artifacts: whether one may be taken, and its way into a folder of its own.

`/etc/tap-trading/release-keys` has the public keys that may sign releases, one in Base64 on each
line, and `/etc/tap-trading/release-floor` the oldest version that may be installed.
"""

import base64
import binascii
import contextlib
import gzip
import hashlib
import json
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tap_release.machine import VERSION, Machine, ReleaseError

#: What an artifact says about itself.
PAPERS = ("manifest.json", "manifest.sig", "checksums.sha256")
#: There while systemd is the machine's first process.
SYSTEMD = Path("/run/systemd/system")
_ASIDE = ("systemd-run", "--scope", "--quiet", "--collect", "--property=CPUWeight=10")
#: Where Debian keeps the pip that environments are made with.
PIP_WHEELS = Path("/usr/share/python-wheels")
#: What reading a damaged archive may raise.
DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)


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
        raise ReleaseError(f"no key is trusted in {path}: playbooks/deploy.yml writes it")
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


def is_same_build(machine: Machine, version: str, checksums: str) -> bool:
    """Whether a version is installed already. `checksums` is the sum that tells builds apart.

    Raises ReleaseError when it is another build of that version.
    """
    try:
        installed = (machine.releases / version / "checksums.sha256").read_bytes()
    except FileNotFoundError:
        return False
    if checksums and _sha256(installed) != checksums:
        raise ReleaseError(
            f"another build of {version} is installed already; commit what differs and build it anew"
        )
    return True


def sweep(machine: Machine) -> None:
    """Remove what those who were killed while they uploaded or installed have left."""
    _sweep_stages(machine)
    machine.upload.unlink(missing_ok=True)


def _sweep_stages(machine: Machine) -> None:
    for left in machine.releases.glob(".incoming-*"):
        shutil.rmtree(left, ignore_errors=True)


def _stage(machine: Machine) -> tempfile.TemporaryDirectory[str]:
    """A new scratch folder; those that killed runs left behind are removed."""
    _sweep_stages(machine)
    return tempfile.TemporaryDirectory(dir=machine.releases, prefix=".incoming-")


def _make_environment(machine: Machine, stage: Path) -> None:
    """The release's own Python with what its requirements name, from its wheels alone."""
    python, pip = str(stage / "venv/bin/python"), ["-m", "pip"]
    making = [machine.python, "-m", "venv", str(stage / "venv")]
    # Debian's own pip does as well as one for each release, which takes seconds to put there.
    if wheels := sorted(PIP_WHEELS.glob("pip-*.whl")):
        making.insert(3, "--without-pip")
        pip = [f"{wheels[-1]}/pip"]
    # The cores belong to those who serve.
    aside = _ASIDE if SYSTEMD.exists() else ()
    machine.run(*aside, *making)
    machine.run(
        *aside, python, "-I", *pip, "install", "--quiet", "--no-compile",
        "--disable-pip-version-check", "--no-cache-dir", "--no-index", "--no-deps",
        "--require-hashes", "--find-links", str(stage / "wheels"),
        "--requirement", str(stage / "requirements.txt"),
    )  # fmt: skip
    # Nobody may write there later. The libraries' own tests are never imported.
    machine.run(
        *aside, python, "-I", "-m", "compileall", "-q", "-j", "2", "-x", "/tests/",
        str(stage / "venv/lib"),
    )  # fmt: skip


def install(machine: Machine, artifact: Path) -> dict[str, object]:
    """Install an artifact into its own folder. Nothing is left behind when it fails."""
    with _stage(machine) as scratch:
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
        if is_same_build(machine, version, _sha256(ours)):
            return {"changed": False, "version": version}
        _make_environment(machine, stage)
        # What the wheels held is installed now; the interpreter is called by its full path.
        shutil.rmtree(stage / "wheels")
        stage.rename(target)
    return {"changed": True, "version": version}
