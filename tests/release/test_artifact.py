"""What `make build` makes: the same bytes for the same commit, whole, and installable offline."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from nacl.signing import SigningKey, VerifyKey
from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename
from tests.conftest import ROOT
from tests.release.conftest import build

Clone = Callable[[], Path]

VERSION = r"v\d+\.\d+\.\d+-\d+\+[0-9a-f]{8}"
PROGRAMS = ("api", "ws", "price", "resolver", "archiver", "tap")
#: The plan's Debian 12 has this libc and all before it.
PLATFORMS = [
    *(f"manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1)),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"),
]


def git(repository: Path, *words: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    return subprocess.run(
        ["git", "-C", repository, *identity, *words],
        env={**os.environ, "TZ": "UTC"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, artifact: Path) -> Clone:
    """`clone()`: a fresh clone that shares nothing but the key and downloaded wheels."""

    def fresh() -> Path:
        target = tmp_path_factory.mktemp("clone") / "repository"
        git(ROOT, "clone", "--quiet", str(ROOT), str(target))
        shutil.copytree(ROOT / ".keys", target / ".keys")
        (target / ".cache").mkdir()
        (target / ".cache/wheels").symlink_to(ROOT / ".cache/wheels")
        return target

    return fresh


@pytest.fixture(scope="module")
def built(clone: Clone) -> Path:
    """The artifact of a clean clone."""
    repository = clone()
    done = build(repository, TZ="UTC")
    assert done.returncode == 0, done.stderr
    return repository / done.stdout.strip()


@pytest.fixture(scope="module")
def unpacked(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["tar", "-xzf", built, "-C", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def manifest(unpacked: Path) -> dict[str, Any]:
    return json.loads((unpacked / "manifest.json").read_text())


@pytest.fixture
def strict_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("strict_umask")
def test_two_builds_of_a_commit_are_the_same_to_the_byte(built: Path, clone: Clone) -> None:
    """In another folder, time zone, language, umask and hash seed."""
    repository = clone()
    elsewhere = {"TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "7", "USER": "someone"}
    done = build(repository, **elsewhere)
    assert done.returncode == 0, done.stderr
    other = repository / done.stdout.strip()
    assert other.name == built.name
    assert other.read_bytes() == built.read_bytes()


def test_building_again_reuses_what_is_there_and_latest_points_to_it(built: Path) -> None:
    repository = built.parents[1]
    before = built.stat()
    assert build(repository).stdout.strip() == str(built.relative_to(repository))
    assert built.stat().st_mtime_ns == before.st_mtime_ns
    assert (repository / "dist/latest.tar.gz").readlink() == Path(built.name)
    assert sorted(path.name for path in built.parent.iterdir()) == ["latest.tar.gz", built.name]


def test_the_version_is_the_plans(built: Path, manifest: dict[str, Any]) -> None:
    repository = built.parents[1]
    assert re.fullmatch(VERSION, manifest["version"])
    assert built.name == f"tap-trading-{manifest['version']}.tar.gz"
    assert build(repository, "version").stdout.strip() == manifest["version"]
    count = git(repository, "rev-list", "--count", "HEAD").strip()
    commit = git(repository, "rev-parse", "--short=8", "HEAD").strip()
    assert manifest["version"].endswith(f"-{count}+{commit}")


def test_the_manifest_has_the_plans_fields(
    manifest: dict[str, Any], unpacked: Path, built: Path
) -> None:
    ours = ["schema", "requires_python", "checksums"]
    assert list(manifest) == [
        *("version", "build_time", "git_commit", "artifacts", "built_by"),
        *ours,
    ]
    assert manifest["checksums"] == sha256(unpacked / "checksums.sha256")
    assert manifest["requires_python"] == "==3.11.*"
    for database, folder in (("bets", "schema"), ("prices", "schema/prices")):
        newest = len(list((unpacked / folder).glob("*.sql")))
        assert manifest["schema"][database] == [newest, newest + 1]
    commit_time = git(
        built.parents[1], "log", "-1", "--date=format-local:%Y%m%d%H%M%S", "--format=%cd"
    )
    assert manifest["build_time"] == commit_time.strip()
    assert manifest["version"].endswith(f"+{manifest['git_commit']}")
    assert manifest["built_by"]
    assert set(PROGRAMS) <= set(manifest["artifacts"])
    for name, artifact in manifest["artifacts"].items():
        assert set(artifact) == {"path", "sha256"}, name
        assert sha256(unpacked / artifact["path"]) == artifact["sha256"], name


def test_every_file_has_its_checksum(unpacked: Path) -> None:
    listed = dict(
        reversed(line.split("  ", 1))
        for line in (unpacked / "checksums.sha256").read_text().splitlines()
    )
    found = {str(p.relative_to(unpacked)): sha256(p) for p in unpacked.rglob("*") if p.is_file()}
    for paper in ("checksums.sha256", "manifest.json", "manifest.sig"):
        del found[paper]
    assert listed == found
    # The ordinary program can read them too.
    subprocess.run(
        ["sha256sum", "--quiet", "--strict", "--check", "checksums.sha256"],
        cwd=unpacked,
        check=True,
    )


def test_the_manifest_is_signed(unpacked: Path) -> None:
    key = VerifyKey(base64.b64decode((ROOT / ".keys/release.pub").read_text()))
    signature = base64.b64decode((unpacked / "manifest.sig").read_text())
    key.verify((unpacked / "manifest.json").read_bytes(), signature)


def test_the_bill_of_materials_has_every_wheel(unpacked: Path, manifest: dict[str, Any]) -> None:
    text = (unpacked / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    assert bill["metadata"]["component"]["version"] == manifest["version"]
    listed = {part["purl"]: part["hashes"][0]["content"] for part in bill["components"]}
    found = {}
    for wheel in (unpacked / "wheels").glob("*.whl"):
        name, version, _, _ = parse_wheel_filename(wheel.name)
        found[f"pkg:pypi/{name}@{version}"] = sha256(wheel)
    del found["pkg:pypi/tap-trading@0.1.0"]
    assert listed == found


def test_the_archive_says_nothing_of_who_made_it(built: Path) -> None:
    with tarfile.open(built) as archive:
        members = archive.getmembers()
    assert {(m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, "root", "root")}
    assert len({member.mtime for member in members}) == 1
    assert all(member.isfile() or member.isdir() for member in members)
    executable = {member.name for member in members if member.isfile() and member.mode & 0o111}
    assert executable == set(PROGRAMS)
    assert {m.mode for m in members if m.isfile() and m.name not in executable} == {0o644}


def test_page_and_schema_travel_along(unpacked: Path) -> None:
    assert (unpacked / "frontend/dist/index.html").is_file()
    assert (unpacked / "schema/001_initial.sql").is_file()
    assert (unpacked / "schema/prices/001_prices.sql").is_file()
    package = ROOT / "app/src/tap_trading"
    for place, source in (("schema", "ledger/schema"), ("schema/prices", "market/schema")):
        wanted = {path.name: path.read_bytes() for path in (package / source).glob("*.sql")}
        found = {p.name: p.read_bytes() for p in (unpacked / place).iterdir() if p.is_file()}
        assert found == wanted


def test_a_launcher_runs_its_own_module(unpacked: Path) -> None:
    for name in PROGRAMS:
        module = "cli.main" if name == "tap" else f"services.{name}"
        last = (unpacked / name).read_text().splitlines()[-1]
        assert last.endswith(f'/venv/bin/python" -I -m tap_trading.{module} "$@"')


def test_every_requirement_is_there_as_a_wheel_for_the_machine(unpacked: Path) -> None:
    supported = target_tags()
    wheels = {}
    for path in (unpacked / "wheels").iterdir():
        name, version, _, tags = parse_wheel_filename(path.name)
        assert tags & supported, f"{path.name} does not fit the machine"
        assert name not in wheels, f"{name} is there twice"
        wheels[name] = (str(version), sha256(path))
    environment = {
        "python_full_version": "3.11.2",
        "python_version": "3.11",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }
    lines = (unpacked / "requirements.txt").read_text().replace("\\\n", " ").splitlines()
    needed = {}
    for line in lines:
        requirement, *hashes = re.split(r"\s+--hash=sha256:", line.strip())
        wanted = Requirement(requirement)
        if wanted.marker is None or wanted.marker.evaluate(environment):
            needed[canonicalize_name(wanted.name)] = (str(wanted.specifier), set(hashes))
    assert set(needed) == set(wheels)
    for name, (specifier, hashes) in needed.items():
        version, digest = wheels[name]
        assert specifier == f"=={version}"
        assert digest in hashes, f"{name}: the wheel's hash is not in requirements.txt"


def test_changes_that_are_not_committed_give_another_version(clone: Clone) -> None:
    repository = clone()

    def version() -> str:
        done = build(repository, "version")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    clean = version()
    module = repository / "app/src/tap_trading/__init__.py"
    text = module.read_text()
    seen = {clean}
    for words in ("a = 1\n", "a = 2\n"):
        module.write_text(text + words)
        seen.add(version())
    module.write_text(text)
    assert version() == clean
    for words in ("b = 1\n", "b = 2\n"):
        module.with_name("fresh.py").write_text(words)
        seen.add(version())
    git(repository, "add", ".")
    seen.add(version())
    assert len(seen) == 6, seen
    assert all(re.fullmatch(VERSION + r"\.dirty\.[0-9a-f]{8}", one) for one in seen - {clean})
    (repository / "README-draft.md").write_text("not part of a release\n")
    module.with_name("fresh.py").unlink()
    git(repository, "add", "-A", "app")
    assert version() == clean


def test_a_key_of_ones_own(clone: Clone, tmp_path: Path) -> None:
    """In the clear or in a vault; what another key has signed is not handed out again."""
    repository, key, password = clone(), tmp_path / "own.key", tmp_path / "password"
    first = build(repository)
    assert first.returncode == 0, first.stderr
    artifact = repository / first.stdout.strip()
    unlike = artifact.read_bytes()
    key.write_text(base64.b64encode(b"k" * 32).decode())
    assert build(repository, TAP_RELEASE_KEY=str(key)).returncode == 0
    mine = artifact.read_bytes()
    assert mine != unlike
    password.write_text("secret")
    vault = {"ANSIBLE_VAULT_PASSWORD_FILE": str(password), "HOME": str(tmp_path)}
    tools = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    subprocess.run(
        ["ansible-vault", "encrypt", key],
        env={"PATH": tools, **vault},
        check=True,
        capture_output=True,
    )
    artifact.unlink()
    done = build(repository, TAP_RELEASE_KEY=str(key), PATH=tools, **vault)
    assert done.returncode == 0, done.stderr
    assert artifact.read_bytes() == mine
    password.write_text("wrong")
    artifact.unlink()
    done = build(repository, TAP_RELEASE_KEY=str(key), PATH=tools, **vault)
    assert done.returncode == 1
    assert f"build: Ansible Vault does not open the key {key}" in done.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "cannot read the key"), ("junk", "holds no key"), ("QUJD", "holds no key")],
)
def test_a_key_that_is_none_is_one_sentence(
    clone: Clone, tmp_path: Path, text: str | None, says: str
) -> None:
    key = tmp_path / "own.key"
    if text is not None:
        key.write_text(text)
    done = build(clone(), TAP_RELEASE_KEY=str(key))
    assert done.returncode == 1
    assert done.stderr.startswith("build: ")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_first_key_is_made_once_and_kept_secret(clone: Clone) -> None:
    repository = clone()
    shutil.rmtree(repository / ".keys")

    def keys() -> str:
        return subprocess.run(
            [sys.executable, repository / "scripts/release_keys.py"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    said, secret = keys(), repository / ".keys/release.key"
    made, public = secret.read_text(), (repository / ".keys/release.pub").read_text().strip()
    assert said.startswith("made .keys/release.key")
    assert f"release_public_keys: [{public}]" in said
    assert secret.stat().st_mode & 0o777 == 0o600
    signer = SigningKey(base64.b64decode(made))
    assert base64.b64encode(bytes(signer.verify_key)).decode() == public
    assert keys().startswith("kept ")
    assert secret.read_text() == made
    assert "release.key" not in git(repository, "status", "--porcelain", "--ignored=no")


def test_an_odd_file_name_among_the_changes_is_no_trouble(clone: Clone) -> None:
    repository = clone()
    (repository / 'app/src/tap_trading/späne und "mehr".txt').write_text("1\n")
    done = build(repository, "version")
    assert done.returncode == 0, done.stderr
    assert ".dirty." in done.stdout


def test_outside_a_git_checkout_it_is_one_sentence(clone: Clone, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    clone().rename(tree)
    (tree / ".git").rename(tmp_path / "git")
    done = build(tree, GIT_CEILING_DIRECTORIES=str(tmp_path))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("build: a release is built from a git checkout with a commit")
    assert len(done.stderr.splitlines()) == 1
    assert not (tree / "dist").exists()


def test_a_wrong_word_gets_the_usage() -> None:
    done = build(ROOT, "everything")
    assert done.returncode == 1
    assert "scripts/build.py version" in done.stderr


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def target_tags() -> set[Tag]:
    return {
        *cpython_tags((3, 11), platforms=PLATFORMS),
        *compatible_tags((3, 11), "cp311", PLATFORMS),
    }
