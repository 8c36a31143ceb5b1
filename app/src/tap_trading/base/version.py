"""Which build this process runs."""

import json
import platform
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True, slots=True)
class Build:
    """What the build recorded about itself (`_build.json` beside this module)."""

    version: str  # vX.Y.Z-build+sha
    build_time: str  # the commit's time, UTC, YYYYMMDDhhmmss
    git_commit: str  # short hash

    def as_json(self) -> dict[str, str]:
        """The four fields of `/version`."""
        return {
            "version": self.version,
            "build_time": self.build_time,
            "git_commit": self.git_commit,
            "python_version": platform.python_version(),
        }


@cache
def current() -> Build:
    """The running build; a source tree that was never built calls itself `v0.0.0-dev`."""
    record = resources.files("tap_trading.base").joinpath("_build.json")
    if not record.is_file():
        return Build("v0.0.0-dev", "19700101000000", "unknown")
    return Build(**json.loads(record.read_text("utf-8")))
