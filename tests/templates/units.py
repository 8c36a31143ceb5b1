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
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *paths],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return [line for line in done.stderr.splitlines() if "tap-trading" in line]
