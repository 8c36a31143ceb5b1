"""Prometheus metrics that every service has; the others are defined where they are counted."""

import re
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tap_trading.base import logger, version

HTTP_SECONDS = Histogram(
    "tap_http_request_seconds",
    "Time from a request's head to its answer, in seconds.",
    ["method", "route", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
)
ERRORS = Counter("tap_errors_total", "Failures noticed, by kind.", ["kind"])
BUILD = Gauge("tap_build_info", "1, with the build's identity.", ["version", "git_commit"])

CONTENT_TYPE = CONTENT_TYPE_LATEST

#: A *.prom file above this size is left out, in bytes.
_LARGEST_FILE = 65536


def exposition(folder: Path | None = None) -> bytes:
    """All metrics of this process in Prometheus' text format, and those of the *.prom files
    in `folder`, which commands that run by timer leave there.

    A file that would spoil the whole is left out and counted; no folder is fine.
    """
    build = version.current()
    BUILD.labels(build.version, build.git_commit).set(1)
    whole = generate_latest()
    for path in sorted(folder.glob("*.prom")) if folder else ():
        try:
            whole += _checked(path, whole)
        except (OSError, ValueError) as error:
            ERRORS.labels("metrics_file").inc()
            logger.get().warning("metrics file left out", path=str(path), error=str(error))
    return whole


def _checked(path: Path, before: bytes) -> bytes:
    """The file's text. Raises OSError or ValueError when it may not follow `before`."""
    if not path.is_file():  # reading a pipe would never end
        raise ValueError("it is not a file")
    with path.open("rb") as file:
        text = file.read(_LARGEST_FILE + 1)
    if len(text) > _LARGEST_FILE:
        raise ValueError(f"it is larger than {_LARGEST_FILE} bytes")
    if not text.endswith(b"\n"):
        raise ValueError("its last line is not whole")
    for family in text_string_to_metric_families(text.decode()):
        for name in {family.name, *(sample.name for sample in family.samples)}:
            if re.search(rf"^(# TYPE )?{re.escape(name)}[ {{]".encode(), before, re.MULTILINE):
                raise ValueError(f"there are metrics of the name {name} already")
    return text
