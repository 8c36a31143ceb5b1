#!/usr/bin/env python3
"""Holds every module to the coverage it needs.

    scripts/coverage_gate.py reports/coverage.json

Reads what `coverage json` wrote, prints the ten modules with the least coverage and fails
with a sentence for each module below its threshold. What money and sign-in depend on needs
the most.
"""

import json
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

#: The first pattern that fits a module decides: path below the package, per cent.
THRESHOLDS = (
    # Money: the plan asks 80 % of the batcher, the ledger around it holds more.
    ("tap_trading/ledger/*", 90),
    ("tap_trading/auth/*", 80),
    ("tap_trading/base/db.py", 70),
    ("tap_trading/base/redis.py", 70),
    ("tap_trading/*", 60),
)
#: Modules whose absence means that the report is not of the whole package.
REQUIRED = (
    "tap_trading/ledger/batcher.py",
    "tap_trading/base/db.py",
    "tap_trading/base/redis.py",
)
LISTED = 10


class GateError(Exception):
    """The report cannot be judged; the text says why."""


@dataclass(frozen=True)
class Module:
    """One module of the report."""

    name: str
    covered: float
    threshold: int

    @property
    def fails(self) -> bool:
        """Whether it is below its threshold."""
        return self.covered < self.threshold


def threshold_of(name: str) -> int:
    """The coverage a module needs, in per cent."""
    return next(least for pattern, least in THRESHOLDS if fnmatchcase(name, pattern))


def modules(report: dict[str, Any]) -> list[Module]:
    """The modules of a report, least covered first. Raises GateError."""
    try:
        measured = {
            path: float(entry["summary"]["percent_covered"])
            for path, entry in report["files"].items()
            if entry["summary"]["num_statements"]
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise GateError(f"this is not what `coverage json` writes ({error!r})") from error
    found = []
    for path, covered in measured.items():
        before, package, rest = path.replace("\\", "/").rpartition("tap_trading/")
        if package and (not before or before.endswith("/")):
            name = package + rest
            found.append(Module(name, covered, threshold_of(name)))
    if missing := sorted(set(REQUIRED) - {module.name for module in found}):
        raise GateError(
            f"{missing[0]} was not measured; is the report of all tests, or was the module renamed?"
        )
    return sorted(found, key=lambda module: (module.covered, module.name))


def table(found: list[Module]) -> str:
    """The least covered modules as a table."""
    lines = ["covered  needed  module"]
    lines += [
        f"{module.covered:6.1f}%  {module.threshold:5d}%  {module.name}"
        for module in found[:LISTED]
    ]
    return "\n".join(lines)


def sentences(found: list[Module]) -> list[str]:
    """A sentence for each module below its threshold."""
    return [
        f"{module.name} is covered to {module.covered:.1f} %, but needs {module.threshold} %."
        for module in found
        if module.fails
    ]


def main(argv: list[str]) -> None:
    """Command line."""
    if len(argv) != 1:
        sys.exit("usage: coverage_gate.py REPORT.json")
    try:
        try:
            report = json.loads(Path(argv[0]).read_text())
        except (OSError, ValueError) as error:
            raise GateError(f"it cannot be read ({error})") from error
        found = modules(report)
    except GateError as error:
        sys.exit(f"coverage: {argv[0]}: {error}")
    print(table(found))
    if failures := sentences(found):
        sys.exit("\n".join(f"coverage: {sentence}" for sentence in failures))
    print(f"every one of the {len(found)} modules is covered as far as it needs to be")


if __name__ == "__main__":
    main(sys.argv[1:])
