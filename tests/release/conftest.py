"""Release artifacts: the real one of this checkout, and fresh clones to build others in."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tap_release import colours, deployment
from tap_release import machine as places
from tests.conftest import ROOT
from tests.release.fake_machine import FakeMachine


def build(repository: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`scripts/build.py` of a checkout, run as its own program."""
    return subprocess.run(
        [sys.executable, repository / "scripts/build.py", *words],
        cwd=repository,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="session")
def artifact() -> Path:
    """The artifact of this checkout as it is now; built unless it is there."""
    done = build(ROOT)
    assert done.returncode == 0, done.stderr
    return ROOT / done.stdout.strip()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """A provisioned machine without a release; time passes as fast as it is waited for."""
    root = tmp_path / "opt"
    root.mkdir()
    made = FakeMachine(root)
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    time = SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep)
    monkeypatch.setattr(deployment, "time", time)
    monkeypatch.setattr(colours, "time", time)
    monkeypatch.setattr(colours, "ask", made.ask)
    monkeypatch.setattr(colours, "ask_colour", made.ask_colour)
    monkeypatch.setattr(colours, "echo", lambda _colour: None)
    monkeypatch.setattr(deployment, "_site_is", made.site)
    app = SimpleNamespace(pw_uid=999, pw_gid=998)
    monkeypatch.setattr(places, "pwd", SimpleNamespace(getpwnam=lambda _name: app))
    return made
