"""Container images of the artifact: they run without network and not as root."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT

PREFIX = f"localhost/tap-trading-test-{os.getpid()}"
AS_ROOT = [] if os.getuid() == 0 else ["sudo", "--preserve-env=CONTAINERS_CONF"]


def podman(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AS_ROOT, "podman", *words],
        env={**os.environ, "CONTAINERS_CONF": str(ROOT / "containers.conf")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def make_images(*services: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts/images.sh", *services],
        env={**os.environ, "PREFIX": PREFIX, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def run(image: str, *words: str) -> subprocess.CompletedProcess[str]:
    return podman("run", "--rm", "--network", "none", "--read-only", image, *words)


@pytest.fixture(scope="module")
def images(artifact: Path) -> Iterator[dict[str, str]]:
    """The images of two services and the ops tool, removed again afterwards."""
    done = make_images("api", "resolver", "tap")
    assert done.returncode == 0, done.stderr
    names = done.stdout.split()
    yield dict(zip(("api", "resolver", "tap"), names, strict=True))
    podman("rmi", "--force", *names)


@pytest.fixture
def manifest(artifact: Path) -> dict[str, Any]:
    shown = subprocess.run(
        ["tar", "-xzOf", artifact, "manifest.json"], capture_output=True, check=True
    )
    return json.loads(shown.stdout)


def test_the_tool_says_which_build_it_is(images: dict[str, str], manifest: dict[str, Any]) -> None:
    done = run(images["tap"], "version")
    assert done.returncode == 0, done.stderr
    assert f"version: {manifest['version']}\n" in done.stdout
    assert f"git_commit: {manifest['git_commit']}\n" in done.stdout


@pytest.mark.parametrize("service", ["api", "resolver"])
def test_a_service_without_a_database_says_so_in_one_line(
    images: dict[str, str], service: str
) -> None:
    done = run(images[service])
    assert done.returncode == 69, done.stdout + done.stderr
    (line,) = done.stdout.splitlines()
    said = json.loads(line)
    assert (said["level"], said["component"]) == ("critical", service)
    assert said["error"] == "there is no database at /data/bets.db; create it with: tap migrate"


def test_an_image_tells_what_it_is(images: dict[str, str], manifest: dict[str, Any]) -> None:
    version = manifest["version"]
    assert images["api"] == f"{PREFIX}-api:{version.replace('+', '_')}"
    config = json.loads(podman("image", "inspect", images["api"]).stdout)[0]["Config"]
    assert config["User"] == "app"
    assert config["Entrypoint"] == ["/opt/app/current/api"]
    assert not config.get("Cmd")
    assert list(config["ExposedPorts"]) == ["8080/tcp"]
    labels = {
        name.removeprefix("org.opencontainers.image."): value
        for name, value in config["Labels"].items()
    }
    assert labels["title"] == "tap-trading-api"
    assert labels["version"] == version
    assert labels["revision"] == manifest["git_commit"]
    assert labels["created"].startswith(manifest["build_time"][:4])


def test_an_image_holds_its_own_service_and_nothing_to_install_with(
    images: dict[str, str],
) -> None:
    look = "id -un; ls /opt/app/current; venv/bin/python -m pip --version 2>&1; ls -d /wheels"
    done = podman(
        *("run", "--rm", "--network", "none", "--entrypoint", "/bin/sh", images["api"], "-c", look)
    )
    assert done.stdout.split("\n")[:4] == ["app", "api", "manifest.json", "venv"]
    assert "No module named pip" in done.stdout
    assert "/wheels\n" not in done.stdout


def test_wrong_words_are_one_sentence() -> None:
    done = make_images("archiver")
    assert done.returncode == 1
    choice = "api ws price resolver tap"
    assert done.stderr == f"images: there is no service archiver; choose from: {choice}\n"


def test_a_base_that_is_not_there_is_named(artifact: Path) -> None:
    done = make_images("tap", BASE="localhost/tap-trading-no-such-base")
    assert done.returncode == 1
    assert "localhost/tap-trading-no-such-base" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"images: {PREFIX}-tap:")
