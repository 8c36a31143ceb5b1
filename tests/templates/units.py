"""Units as systemd itself judges them."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path


def complaints(folder: Path, units: Mapping[str, str]) -> list[str]:
    """What `systemd-analyze verify` says of our units; `units` are texts by file name.

    Their programs are on the machine only and would be reported missing.
    """
    paths = []
    for name, text in units.items():
        paths.append(folder / name)
        paths[-1].write_text(
            re.sub(r"^(Exec\w+=)/opt/app/\S+", r"\1/bin/true", text, flags=re.MULTILINE)
        )
    done = _analyze("verify", "--man=no", *map(str, paths), SYSTEMD_UNIT_PATH=f"{folder}:")
    return [line for line in done.stderr.splitlines() if "tap-trading" in line]


def exposure(folder: Path, name: str, text: str) -> float:
    """How exposed `systemd-analyze security` finds a service, from 0 to 10; `text` is its unit."""
    (folder / name).write_text(text)
    done = _analyze("security", "--offline=yes", "--no-pager", str(folder / name))
    [found] = re.findall(rf"Overall exposure level for {re.escape(name)}: ([\d.]+)", done.stdout)
    return float(found)


def _analyze(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
