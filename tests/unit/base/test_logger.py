"""Log lines: the plan's format, one JSON object a line."""

import contextlib
import json
import logging
import os
from pathlib import Path

import pytest
import structlog

from tap_trading.base import logger


@pytest.fixture(autouse=True)
def _fresh_logging() -> object:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.getLogger().handlers.clear()


def test_a_line_has_the_plans_keys_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    logger.configure("api", "info")
    with structlog.contextvars.bound_contextvars(request_id="req_abc123"):
        logger.get().info("bet placed", user_id="user_1", amount=1000)
    line = json.loads(capsys.readouterr().out)
    assert list(line) == [
        *("level", "time", "request_id", "component", "message", "user_id", "amount"),
    ]
    assert line["level"] == "info"
    assert line["component"] == "api"
    assert line["message"] == "bet placed"
    assert line["time"].endswith("Z")


def test_levels_below_the_threshold_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    logger.configure("api", "warning")
    logger.get().info("quiet")
    logger.get().warning("loud")
    assert [json.loads(x)["message"] for x in capsys.readouterr().out.splitlines()] == ["loud"]


def test_libraries_speak_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    logger.configure("ws", "info")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("aiohttp.server").exception("request failed")
    line = json.loads(capsys.readouterr().out)
    assert line["level"] == "error"
    assert line["logger"] == "aiohttp.server"
    assert "ValueError: broken" in line["exception"]
    assert "\n" not in capsys.readouterr().out


def test_times_have_milliseconds() -> None:
    assert logger.rfc3339_ms(1_764_000_000_007) == "2025-11-24T16:00:00.007Z"


def test_a_reader_of_the_log_that_is_gone_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", buffering=1) as gone:  # noqa: PTH123 - a descriptor, not a path
        with monkeypatch.context() as patched:
            patched.setattr("sys.stdout", gone)
            logger.configure("api", "info")
            logger.get().info("nobody reads this")
        with contextlib.suppress(BrokenPipeError):
            gone.flush()
        with Path(os.devnull).open("wb") as null:
            os.dup2(null.fileno(), writing)
