"""Structured logs: one JSON object a line on standard output, for journald.

Keys, in this order: level, time (RFC 3339 UTC, ms), request_id (inside a request),
component, message, then whatever the line has to say.
"""

import contextlib
import logging
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TextIO, cast

import orjson
import structlog

_FIRST = ("level", "time", "request_id", "component", "message")


def _stamp(_logger: object, _method: str, event: MutableMapping[str, Any]) -> Any:
    event["time"] = rfc3339(datetime.now(UTC))
    return event


def _ordered(_logger: object, _method: str, event: MutableMapping[str, Any]) -> Any:
    event["message"] = event.pop("event", "")
    head = {key: event.pop(key) for key in _FIRST if key in event}
    return {**head, **event}


def _json(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    return orjson.dumps(event, default=str).decode()


def rfc3339(when: datetime) -> str:
    """A UTC time as the API writes it: milliseconds and `Z`."""
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def rfc3339_ms(unix_ms: int) -> str:
    """The same for a Unix time in milliseconds."""
    seconds, ms = divmod(unix_ms, 1000)
    return f"{_to_the_second(seconds)}.{ms:03d}Z"


@lru_cache(maxsize=16)
def _to_the_second(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class _ToStructlog(logging.Handler):
    """Sends what libraries say through the standard library's logging the same way."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            record.levelno,
            record.getMessage(),
            logger=record.name,
            **({"exc_info": record.exc_info} if record.exc_info else {}),
        )


class _Output:
    """Standard output that may be gone: whoever read the log has ended, and the service goes on."""

    def write(self, text: str) -> int:
        """Write what can be written."""
        with contextlib.suppress(OSError):
            return sys.stdout.write(text)
        return 0

    def flush(self) -> None:
        """Hand on what can be handed on."""
        with contextlib.suppress(OSError):
            sys.stdout.flush()


def configure(component: str, level: str) -> None:
    """Set logging up for this process. Call once, before the first line is written."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _stamp,
            structlog.processors.format_exc_info,
            _ordered,
            _json,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Output())),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(component=component)
    logging.basicConfig(handlers=[_ToStructlog()], level=max(threshold, logging.INFO), force=True)


def get() -> Any:
    """The process's logger."""
    return structlog.get_logger()
