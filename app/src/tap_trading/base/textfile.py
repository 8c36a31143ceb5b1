"""Metrics of commands that run by timer: a file in Prometheus' text format each, which the API
shows with its own metrics, and a node exporter's textfile collector could.
"""

import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

#: A temporary file this old belongs to a process that was killed, in s.
_LEFT_BEHIND_S = 60.0


@dataclass(frozen=True, slots=True)
class Metric:
    """A gauge with its values: one, or one for each value of its label."""

    name: str
    help: str
    values: Mapping[str, float] = field(default_factory=dict)  # by the label's value
    label: str = ""  # without one, the only value is that of ""


def write(path: Path, metrics: Iterable[Metric]) -> None:
    """Replace the file by these metrics, in one step, readable by everybody.

    Raises OSError; what was there stays then.
    """
    registry = CollectorRegistry()
    for metric in metrics:
        labels = [metric.label] if metric.label else []
        gauge = Gauge(metric.name, metric.help, labels, registry=registry)
        for label, value in metric.values.items():
            (gauge.labels(label) if metric.label else gauge).set(value)
    prefix = f".{path.name}-"
    for left in path.parent.glob(f"{prefix}*"):
        if time.time() - left.stat().st_mtime > _LEFT_BEHIND_S:
            left.unlink(missing_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=prefix, delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(generate_latest(registry))
            file.flush()
            temporary.chmod(0o644)
            temporary.replace(path)
        except OSError:
            temporary.unlink()
            raise


def read(path: Path) -> dict[str, dict[str, float]]:
    """The values of a file that `write` wrote, by name and label's value ("" without a label);
    empty when there is none that can be read.
    """
    found: dict[str, dict[str, float]] = {}
    try:
        for family in text_string_to_metric_families(path.read_text("utf-8")):
            for sample in family.samples:
                label = next(iter(sample.labels.values()), "")
                found.setdefault(sample.name, {})[label] = sample.value
    except (OSError, ValueError):
        return {}
    return found
