#!/usr/bin/env python3
"""Builds the release artifact from the state of the git checkout.

The artifact is `dist/tap-trading-<version>.tar.gz`; `dist/latest.tar.gz` points to it.
Its version is vX.Y.Z-<commits>+<commit>; a checkout with changes that are not committed
adds `.dirty.<digest of the changes>`, so that no two different builds share a name. Two
builds of one commit are identical to the byte: every time in it is the commit's.

What holds it together: `manifest.sig` signs `manifest.json` (Ed25519, see release_keys.py),
which has the sum of `checksums.sha256`, which has the sum of every other file.

    scripts/build.py            build (or reuse what is built already), print the path
    scripts/build.py version    print the version only
"""

import base64
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import build_frontend
import build_sbom
import release_keys
from nacl.exceptions import BadSignatureError

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
WHEEL_CACHE = ROOT / ".cache" / "wheels"

#: What runs from a release: file name and module.
ENTRY_POINTS = {
    "api": "tap_trading.services.api",
    "ws": "tap_trading.services.ws",
    "price": "tap_trading.services.price",
    "resolver": "tap_trading.services.resolver",
    "archiver": "tap_trading.services.archiver",
    "tap": "tap_trading.cli.main",
}
#: The migrations of each database: where they lie in a release, and where they come from.
SCHEMAS = {
    "bets": ("schema", "app/src/tap_trading/ledger/schema"),
    "prices": ("schema/prices", "app/src/tap_trading/market/schema"),
}
#: A constant, so that builds of a commit are the same wherever they are made.
BUILT_BY = "tap-trading-build"
#: The machine's Python; wheels are resolved for it and not for the one that builds.
TARGET_PYTHON = "3.11"
TARGET_PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1)),
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
    "manylinux1_x86_64",
    "linux_x86_64",
)
#: What a release is made from.
SOURCES = ("app", *(f"scripts/{name}.py" for name in ("build", "build_frontend", "build_sbom")))

LAUNCHER = """\
#!/bin/sh
# Runs {module} from the release this file lies in.
exec "$(dirname "$(readlink -f "$0")")/venv/bin/python" -I -m {module} "$@"
"""


class BuildError(Exception):
    """The artifact cannot be built; the text says why."""


@dataclass(frozen=True)
class GitState:
    """What is built."""

    version: str
    commit: str
    time: datetime

    @property
    def build_time(self) -> str:
        """The commit's time as the plan writes it."""
        return self.time.strftime("%Y%m%d%H%M%S")


def _run(*command: str, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command[:4])} …: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def git_state() -> GitState:
    """Version, commit and time of the checkout. Raises BuildError outside one."""
    try:
        commit = _run("git", "rev-parse", "--short=8", "HEAD").strip()
        count = _run("git", "rev-list", "--count", "HEAD").strip()
        stamp = int(_run("git", "log", "-1", "--format=%ct"))
        changes = _run(
            "git", "status", "--porcelain", "-z", "--untracked-files=all", "--", *SOURCES
        )
    except (BuildError, FileNotFoundError) as error:
        raise BuildError(
            f"a release is built from a git checkout with a commit ({error})"
        ) from error
    project = tomllib.loads((ROOT / "app" / "pyproject.toml").read_text())["project"]
    version = f"v{project['version']}-{count}+{commit}"
    if changes:
        digest = hashlib.sha256(_run("git", "diff", "--binary", "HEAD", "--", *SOURCES).encode())
        for entry in changes.split("\0"):
            if entry.startswith("??"):
                digest.update(f"{entry}\0".encode() + (ROOT / entry[3:]).read_bytes())
        version += f".dirty.{digest.hexdigest()[:8]}"
    return GitState(version, commit, datetime.fromtimestamp(stamp, UTC))


def _download_wheels(lock: Path) -> Path:
    """Every locked dependency as a wheel for the target, verified by hash; cached by the lock."""
    key = hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    cache = WHEEL_CACHE / key
    if not cache.is_dir():
        WHEEL_CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=WHEEL_CACHE) as scratch:
            wheels = Path(scratch, "wheels")
            platforms = [word for name in TARGET_PLATFORMS for word in ("--platform", name)]
            _run(
                sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
                "--no-deps", "--require-hashes", "--only-binary=:all:",
                "--python-version", TARGET_PYTHON, "--implementation", "cp",
                "--abi", "cp311", "--abi", "abi3", "--abi", "none",
                *platforms, "--dest", str(wheels), "--requirement", str(lock),
            )  # fmt: skip
            wheels.rename(cache)
    return cache


def _build_wheel(state: GitState, target: Path) -> Path:
    """Our own distribution as a wheel, with the build's identity inside."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "app")
        shutil.copytree(
            ROOT / "app", source, ignore=shutil.ignore_patterns("__pycache__", "frontend", "dist")
        )
        record = {
            "version": state.version,
            "build_time": state.build_time,
            "git_commit": state.commit,
        }
        build_file = source / "src" / "tap_trading" / "base" / "_build.json"
        build_file.write_text(json.dumps(record, indent=2) + "\n")
        _run(
            sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target),
            str(source),
            SOURCE_DATE_EPOCH=str(int(state.time.timestamp())),
        )  # fmt: skip
    (wheel,) = target.glob("tap_trading-*.whl")
    return wheel


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fill(stage: Path, state: GitState) -> None:
    """Lay the release out in `stage`."""
    wheels = stage / "wheels"
    lock = ROOT / "app" / "requirements.txt"
    shutil.copytree(_download_wheels(lock), wheels)
    own = _build_wheel(state, wheels)
    _, own_version = own.name.split("-")[:2]
    (stage / "requirements.txt").write_text(
        f"{lock.read_text()}tap-trading=={own_version} --hash=sha256:{_sha256(own)}\n"
    )
    for name, module in ENTRY_POINTS.items():
        launcher = stage / name
        launcher.write_text(LAUNCHER.format(module=module))
        launcher.chmod(0o755)
    build_frontend.build(stage / "frontend" / "dist")
    schema = {}
    for database, (place, source) in SCHEMAS.items():
        shutil.copytree(ROOT / source, stage / place)
        newest = len(list((ROOT / source).glob("*.sql")))
        schema[database] = [newest, newest + 1]
    (stage / "sbom.cdx.json").write_text(
        build_sbom.bill(state.version, state.time, list(wheels.glob("*.whl")), own)
    )
    files = sorted(path for path in stage.rglob("*") if path.is_file())
    sums = "".join(f"{_sha256(path)}  {path.relative_to(stage)}\n" for path in files)
    (stage / "checksums.sha256").write_text(sums)
    artifacts = {name: stage / name for name in ENTRY_POINTS} | {"wheel": own}
    manifest = {
        "version": state.version,
        "build_time": state.build_time,
        "git_commit": state.commit,
        "artifacts": {
            name: {"path": str(path.relative_to(stage)), "sha256": _sha256(path)}
            for name, path in artifacts.items()
        },
        "built_by": BUILT_BY,
        # It brings a database to the first of these, and runs on the next one too: migrations
        # only expand, so the release before can come back.
        "schema": schema,
        "requires_python": f"=={TARGET_PYTHON}.*",
        "checksums": _sha256(stage / "checksums.sha256"),
    }
    paper = (json.dumps(manifest, indent=2) + "\n").encode()
    (stage / "manifest.json").write_bytes(paper)
    signature = release_keys.signing_key().sign(paper).signature
    (stage / "manifest.sig").write_text(f"{base64.b64encode(signature).decode()}\n")


def _pack(stage: Path, target: Path, state: GitState) -> None:
    """The staged files as a tar archive in which nothing depends on who packed it, or when."""
    stamp = int(state.time.timestamp())
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(stage.rglob("*")):
            info = archive.gettarinfo(path, arcname=str(path.relative_to(stage)))
            info.uid = info.gid = 0
            info.uname = info.gname = "root"
            info.mtime = stamp
            info.mode = 0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644
            if path.is_dir():
                archive.addfile(info)
            else:
                with path.open("rb") as content:
                    archive.addfile(info, content)
    # Wheels are compressed already: a low level costs nothing and saves seconds.
    target.write_bytes(gzip.compress(plain.getvalue(), compresslevel=1, mtime=0))


def _is_ours(target: Path) -> bool:
    """Whether an artifact is there that our key has signed."""
    papers = {}
    try:
        with tarfile.open(target, "r:gz") as archive:
            for member in archive:
                if member.name in ("manifest.json", "manifest.sig") and (
                    paper := archive.extractfile(member)
                ):
                    papers[member.name] = paper.read()
                if len(papers) == 2:
                    break
        signature = base64.b64decode(papers["manifest.sig"])
        release_keys.signing_key().verify_key.verify(papers["manifest.json"], signature)
    except (OSError, EOFError, tarfile.TarError, KeyError, ValueError, BadSignatureError):
        return False
    return True


def build(state: GitState) -> Path:
    """Build the artifact unless it is there, and point `latest.tar.gz` to it."""
    DIST.mkdir(exist_ok=True)
    target = DIST / f"tap-trading-{state.version}.tar.gz"
    if not _is_ours(target):
        with tempfile.TemporaryDirectory(dir=DIST, prefix=".stage-") as scratch:
            stage = Path(scratch, "release")
            stage.mkdir()
            _fill(stage, state)
            packed = Path(scratch, "packed")
            _pack(stage, packed, state)
            packed.rename(target)
    link = DIST / f".latest-{os.getpid()}"
    link.symlink_to(target.name)
    link.rename(DIST / "latest.tar.gz")
    return target


def main() -> None:
    """Command line."""
    try:
        state = git_state()
        if sys.argv[1:] == ["version"]:
            print(state.version)
        elif not sys.argv[1:]:
            print(build(state).relative_to(ROOT))
        else:
            sys.exit(__doc__)
    except (BuildError, release_keys.KeyFileError) as error:
        sys.exit(f"build: {error}")


if __name__ == "__main__":
    main()
