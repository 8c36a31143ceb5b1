"""What is looked at after each thing that went wrong."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from e2e.site.machine import Machine
from e2e.site.releases import OTHER, version_of

Deploy = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session", autouse=True)
def alone(machine: Machine) -> None:
    """The machine has but the live release, whatever was tried before."""
    machine.run(
        "cd /opt/app/releases && rm -f ../previous"
        ' && find . -mindepth 1 -maxdepth 1 ! -name "$(basename "$(readlink ../current)")"'
        " -exec rm -rf {} +"
    )


@pytest.fixture(scope="module", autouse=True)
def books(machine: Machine) -> Iterator[None]:
    """They are exact, whatever happened."""
    yield
    assert machine.run("tap audit", timeout=120).startswith("/data/bets.db is clean: ")


@pytest.fixture
def deploy(deploy: Deploy) -> Deploy:
    """As it is, but watched for a shorter time."""
    return lambda artifact, *more: deploy(artifact, "-e", "release_watch_s=2", *more)


@pytest.fixture
def live(
    host: Host, machine: Machine, live_release: Callable[[], str], another: Path, place_bet: Any
) -> Iterator[str]:
    """The live version, which is still the live one afterwards, alone, and serves."""
    before, behind = live_release(), host.run("readlink /opt/app/previous").stdout
    yield before
    assert live_release() == before
    assert host.run("readlink /opt/app/previous").stdout == behind
    machine.run(f"cd /opt/app/releases && rm -rf '{OTHER}' '{version_of(another)}'")
    assert place_bet().status == 202
