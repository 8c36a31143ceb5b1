"""What has to hold before a deployment begins, so that it does not fail in its middle."""

import re
import shutil
import time
from http import HTTPStatus
from pathlib import Path

from tap_release import colours, probe
from tap_release.machine import Machine, ReleaseError

#: Room for a release, its upload and its environment, and for the databases to grow meanwhile.
FREE_BYTES = 500_000_000
#: What a colour needs when none runs yet that could be measured.
COLOUR_BYTES = 600_000_000

_LOOKS = 3
_BETWEEN_LOOKS_S = 1.0
_MEMINFO = Path("/proc/meminfo")


def check(machine: Machine, *, force: bool) -> None:
    """Raises ReleaseError, which says what is missing. By force an unwell site is deployed to."""
    _room(machine)
    live = colours.live(machine)
    _memory(machine, live)
    if live is not None and not force and (seen := _still_unwell()):
        raise ReleaseError(
            f"the live release is not well: {seen}; see playbooks/status.yml, and deploy all the"
            " same with -e release_force=true"
        )


def _room(machine: Machine) -> None:
    for path in (machine.releases, machine.data, machine.data / "backups"):
        if not path.is_dir():
            continue
        free = shutil.disk_usage(path).free
        if free < FREE_BYTES:
            raise ReleaseError(
                f"{path} has {free // 1_000_000} MB free, a deployment needs"
                f" {FREE_BYTES // 1_000_000} MB"
            )


def _memory(machine: Machine, live: str | None) -> None:
    """Both colours run side by side for a while."""
    needed = COLOUR_BYTES
    if live is not None:
        shown = machine.systemctl("show", "--property=MemoryCurrent", *colours.units(live))
        used = [int(number) for number in re.findall(r"=([0-9]+)$", shown, re.MULTILINE)]
        # A number without meaning stands for "not known".
        needed = max(sum(each for each in used if each < 1 << 50) * 5 // 4, 1)
    found = re.search(r"^MemAvailable:\s+([0-9]+) kB$", _MEMINFO.read_text(), re.MULTILINE)
    available = int(found[1]) * 1024 if found else 0
    if available < needed:
        raise ReleaseError(
            f"{available // 1_000_000} MB of memory are available, a second colour needs"
            f" {needed // 1_000_000} MB"
        )


def _still_unwell() -> str | None:
    """What is wrong with the live release whenever it is asked: a busy machine may be late once."""
    for _ in range(_LOOKS - 1):
        if unwell() is None:
            return None
        time.sleep(_BETWEEN_LOOKS_S)
    return unwell()


def unwell() -> str | None:
    """Which service of the live release is not healthy; None when all are."""
    for service in colours.SERVICES:
        try:
            status, report = colours.ask(service, "/healthz")
        except probe.UNANSWERED as error:
            return f"{service} does not answer ({error})"
        if status != HTTPStatus.OK:
            return f"{service} says {report.get('checks')}"
    return None
