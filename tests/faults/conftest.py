"""How long the fault tests go on, and what they measured.

`make test` runs a share of each; with `--long` (`make test-long`) it is many times that.
"""

from collections.abc import Callable
from typing import Any

import pytest
from tests.integration.conftest import serve

__all__ = ["serve"]

_MEASURED = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="fault tests: hundreds of kills, thousands of states"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_MEASURED] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test marked `campaigns(few, many)` that takes `campaign` runs that often."""
    marker = metafunc.definition.get_closest_marker("campaigns")
    if marker is not None and "campaign" in metafunc.fixturenames:
        few, many = marker.args
        wanted = many if metafunc.config.getoption("long", default=False) else few
        metafunc.parametrize("campaign", range(wanted))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if lines := config.stash.get(_MEASURED, []):
        terminalreporter.section("measured")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Write a figure into the summary at the end."""
    return request.config.stash.setdefault(_MEASURED, []).append


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether there is time."""
    return bool(request.config.getoption("long", default=False))
