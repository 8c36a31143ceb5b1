"""Copies of the databases put in the place of what is there. What is there is put aside, never
removed.

The live release's own `tap` makes everything ready beside the site, which goes on meanwhile. Then
the site is stopped, the files are moved, and it is started again. How far that is stands in a file
on disk before each step. Whoever finds it there goes on: as long as the books have not been moved
the site goes on with them, after that with the copy.
"""

import json
import re
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tap_release import colours, deployment
from tap_release.machine import Machine, ReleaseError, now, read_json, sync, write_json

#: The new site may take so long to be ready, in s.
READY_WITHIN_S = 60
_TAP = "/usr/local/sbin/tap"
_REDIS = "/run/redis/redis-server.sock"
_STAMP = re.compile(r"-(\d{8}T\d{6}Z)\.db")
#: A database is its file and these, which must never meet another one's.
_BESIDE = ("", "-wal", "-shm")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be restored, and what whoever asks has been told."""

    copy: str = ""  # of the books; empty: the newest
    prices: str = ""
    offsite: bool = True
    over_newer: bool = False  # although entries of the ledger would be lost
    lose_since: str = ""  # the stamp of the copy, said once more


@dataclass(slots=True)
class Restore:
    """A restore and how far it is."""

    copies: dict[str, str]  # by database, those that take its place
    archives: list[str]  # files that come with them
    unknown: list[str]  # files of archives that do not belong to them
    timers: list[str]  # that run, and have to run again
    aside: str  # the folder for what was there
    by: str
    since: str
    stage: str = "stopping"

    def reach(self, machine: Machine, stage: str) -> None:
        """Remember that this was done. Raises OSError."""
        self.stage = stage
        write_json(machine.restore, asdict(self))


def restore(machine: Machine, wanted: Wanted, *, by: str) -> dict[str, object]:
    """Have the site go on with copies of its databases. Raises ReleaseError."""
    recover(machine)
    version, colour = machine.live_version(), colours.live(machine)
    if version is None or colour is None:
        raise ReleaseError("no release is live, so nothing can be restored; deploy one first")
    began = time.monotonic()
    plan = json.loads(machine.run(_TAP, "restore-prepare", *_words(wanted)))
    try:
        change = _compared(machine)
        _insist(change, plan["copies"]["bets"], wanted)
    except ReleaseError:
        _clear(machine)
        raise
    made = Restore(
        copies={
            name: copy
            for name, copy in plan["copies"].items()
            if name == "bets" or wanted.prices or not change["keeps_prices"]
        },
        archives=plan["fetched"],
        unknown=plan["unknown"],
        timers=_timers(machine),
        aside=f"{machine.data}/aside/{re.sub('[-:]|[.].*', '', now())}Z",
        by=by,
        since=now(),
    )
    made.reach(machine, "stopping")
    stopped = time.monotonic()
    _stop(machine, colour, made)
    try:  # what was written until the end counts too
        change = _compared(machine)
        _insist(change, plan["copies"]["bets"], wanted)
    except ReleaseError as error:
        _start(machine, made)
        raise ReleaseError(f"{error}; the site was stopped for this, and goes on") from error
    made.reach(machine, "moving")
    _go_on(machine, made)
    return {
        "changed": True,
        "version": version,
        "copies": made.copies,
        "rows": plan["rows"],
        "missing_archives": plan["missing"],
        "lost_entries": change["lost_entries"],
        "aside": made.aside,
        "down_s": round(time.monotonic() - stopped, 1),
        "took_s": round(time.monotonic() - began, 1),
    }


def recover(machine: Machine) -> dict[str, object] | None:
    """End a restore that was interrupted: with the copy if the books were moved already, else with
    what was there. None when there was none. Raises ReleaseError.
    """
    found = read_json(machine.restore)
    if not found:
        return None
    made = Restore(**found)
    told = {"changed": True, "version": machine.live_version(), "stage": made.stage}
    if made.stage == "moving" and not _has_moved(machine, made):
        made.reach(machine, "stopping")  # what is ready goes, which would look as if it were moved
    if made.stage == "stopping":
        _start(machine, made)
        return {**told, "result": "taken back, nothing was restored"}
    colour = colours.live(machine)
    if colour is not None:
        _stop(machine, colour, made)  # the machine's start may have started it
    _go_on(machine, made)
    return {**told, "result": f"finished, {made.copies['bets']} was restored"}


def _words(wanted: Wanted) -> list[str]:
    words = ["--offsite"] if wanted.offsite else []
    words += [f"--copy={wanted.copy}"] if wanted.copy else []
    return words + ([f"--prices={wanted.prices}"] if wanted.prices else [])


def _compared(machine: Machine) -> dict[str, object]:
    said: dict[str, object] = json.loads(machine.run(_TAP, "restore-compare"))
    return said


def _insist(change: dict[str, object], copy: str, wanted: Wanted) -> None:
    """Raises ReleaseError when something would be lost that whoever asks was not told of twice."""
    lost, last = change["lost_entries"], change["last_entry"]
    if lost == 0:
        return
    found = _STAMP.search(copy)
    stamp = found[1] if found else copy
    if wanted.over_newer and wanted.lose_since == stamp:
        return
    what = (
        f"the books here have {lost} entries that {copy} has not, the last of them {last}"
        if lost
        else f"nobody can tell whether the books here are newer than {copy}: {last}"
    )
    raise ReleaseError(
        f"{what}; nothing was changed. To put them aside all the same, say it twice: -e"
        f" restore_over_newer=true -e restore_lose_since={stamp}"
    )


def _timers(machine: Machine) -> list[str]:
    shown = machine.systemctl(
        "list-units", "--type=timer", "--state=active", "--plain", "--no-legend", "tap-trading-*"
    )
    return [line.split()[0] for line in shown.splitlines() if line.strip()]


def _stop(machine: Machine, colour: str, made: Restore) -> None:
    """Nothing reads or writes the databases after this. Raises ReleaseError."""
    colours.close_ports(machine)
    commands = [timer.replace(".timer", ".service") for timer in made.timers]
    machine.systemctl("stop", *made.timers, *commands, *colours.units(colour))


def _has_moved(machine: Machine, made: Restore) -> bool:
    """Whether the books that were there are not there any more."""
    return Path(made.aside, "bets.db").exists() or not _ready(machine, "bets").exists()


def _ready(machine: Machine, database: str) -> Path:
    return machine.data / "restore" / f"{database}.db"


def _go_on(machine: Machine, made: Restore) -> None:
    """From the moving on, which may be done twice. Raises ReleaseError."""
    try:
        _move(machine, made)
        # What it remembers of bets, streams and sessions is of a time that was undone.
        machine.run("redis-cli", "-s", _REDIS, "flushall")
        made.reach(machine, "moved")
        _start(machine, made)
    except (ReleaseError, OSError) as error:
        raise ReleaseError(
            f"{made.copies['bets']} was not restored to its end: {error}; what was there is in"
            f" {made.aside}. Mend that, then playbooks/recover.yml goes on"
        ) from error


def _move(machine: Machine, made: Restore) -> None:
    """Put aside what is there and move in what is ready, the books first. Raises OSError."""
    aside, data, ready = Path(made.aside), machine.data, machine.data / "restore"
    aside.mkdir(parents=True, exist_ok=True)
    for name in sorted(made.copies):
        if _ready(machine, name).exists():  # else it was moved before
            for end in _BESIDE:
                _rename(data / f"{name}.db{end}", aside / f"{name}.db{end}")
            _rename(_ready(machine, name), data / f"{name}.db")
    for name in made.unknown:
        _rename(data / "archive" / name, aside / name)
    for name in made.archives:
        _rename(ready / "archive" / name, data / "archive" / name)


def _rename(old: Path, new: Path) -> None:
    """Move a file if it is there still; on disk when this returns. Raises OSError."""
    if old.exists():
        old.rename(new)
        sync(new.parent)
        sync(old.parent)


def _start(machine: Machine, made: Restore) -> None:
    """Have the site go on, and see that it does. Raises ReleaseError."""
    version, colour = machine.live_version(), colours.live(machine)
    if version is None or colour is None:
        raise ReleaseError("no release is live any more; deploy one")
    colours.open_ports(machine)
    colours.start(machine, colour, version)
    colours.await_ready(colour, version, frozenset({"price_age"}), READY_WITHIN_S)
    colours.await_takeover(colour)
    deployment.smoke_test(version, READY_WITHIN_S)
    machine.systemctl("start", *made.timers)
    _clear(machine)
    machine.restore.unlink(missing_ok=True)


def _clear(machine: Machine) -> None:
    """Give the room of what was made ready back. Raises OSError."""
    for left in (machine.data / "restore").glob("*"):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()
