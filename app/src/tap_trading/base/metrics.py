"""Prometheus metrics that every service has; the others are defined where they are counted."""

from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest

from tap_trading.base import version

HTTP_SECONDS = Histogram(
    "tap_http_request_seconds",
    "Time from a request's head to its answer, in seconds.",
    ["method", "route", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
)
ERRORS = Counter("tap_errors_total", "Failures noticed, by kind.", ["kind"])
BUILD = Gauge("tap_build_info", "1, with the build's identity.", ["version", "git_commit"])

CONTENT_TYPE = CONTENT_TYPE_LATEST


def exposition() -> bytes:
    """All metrics of this process in Prometheus' text format."""
    build = version.current()
    BUILD.labels(build.version, build.git_commit).set(1)
    return generate_latest()
