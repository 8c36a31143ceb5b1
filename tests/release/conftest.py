"""Release artifacts: the real one of this checkout, and fresh clones to build others in."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import ROOT


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
