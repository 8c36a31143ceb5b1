"""A deployment, step by step: migrate, start the idle colour, have it prove itself, switch,
watch, drain the old colour. A rollback is the same with a release that is installed already.

What is under way stands in a file, on disk before each step. Whoever finds it there, because the
one who wrote it was killed or the machine went down, finishes the deployment or takes it back:
which of both, the link `current` says, for moving that is the switch. Every step may be done
twice.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any

from tap_release import colours, lock, probe, shelf
from tap_release.machine import (
    Machine,
    ReleaseError,
    now,
    point,
    read_json,
    release_path,
    sweep,
    write_json,
)

#: The new colour may take so long to be ready, and to answer through Nginx, in s.
READY_WITHIN_S = 30
ANSWERS_WITHIN_S = 5
#: While it is watched, it is looked at this often, in s.
_LOOK_EVERY_S = 1.0
#: What a colour need not show when nobody makes prices that it could hear.
_NO_PRICE = frozenset({"price_age"})
#: Databases as they were before a migration, beside the hourly copies.
_SNAPSHOTS = "backups/before-migrations"
_SNAPSHOTS_KEPT = 5
_KEY = "TAP_BACKUP_KEY_FILE"


@dataclass(slots=True)
class Deployment:
    """One deployment and how far it is."""

    version: str
    colour: str
    before: str | None  # the release that was live
    before_colour: str | None
    previous: str | None  # the one before that
    what: str  # deploy or rollback
    by: str
    since: str
    watch_s: float  # how long the new release is watched before the old one is stopped
    stage: str = "begun"
    switched_at: str | None = None

    def reach(self, machine: Machine, stage: str) -> None:
        """Remember that this was done. Raises OSError."""
        self.stage = stage
        write_json(machine.deployment, asdict(self))


def under_way(machine: Machine) -> Deployment | None:
    """The deployment that somebody has begun and nobody has ended."""
    found = read_json(machine.deployment)
    try:
        return Deployment(**found) if found else None
    except TypeError:
        return None


@contextlib.contextmanager
def alone(machine: Machine) -> Iterator[None]:
    """While it lasts, no other run changes anything. Raises ReleaseError."""
    try:
        folder = os.open(machine.releases, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError as error:
        raise ReleaseError(
            f"there is no {machine.releases}: run playbooks/provision.yml first"
        ) from error
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            found = lock.held(machine)
            who = f": {lock.words(found)}" if found else ""
            raise ReleaseError(f"another deployment is under way on this machine{who}") from error
        yield
    finally:
        os.close(folder)


def deploy(
    machine: Machine, version: str, *, by: str, what: str = "deploy", watch_s: float = 5.0
) -> dict[str, object]:
    """Make an installed release the live one; the one before goes on if that fails.

    Raises ReleaseError.
    """
    if not machine.is_installed(version):
        raise ReleaseError(f"{version} is not installed")
    recover(machine)
    before = machine.live_version()
    if before == version:
        return confirm(machine, version)
    sweep(machine)
    before_colour = colours.live(machine)
    behind = behind_schema(machine, version, before)
    made = Deployment(
        version=version,
        colour=colours.other(before_colour),
        before=before,
        before_colour=before_colour,
        previous=machine.previous_version(),
        what=what,
        by=by,
        since=now(),
        watch_s=watch_s,
    )
    return _carry_out(machine, made, behind)


def _carry_out(machine: Machine, made: Deployment, behind: dict[str, int]) -> dict[str, object]:
    began = time.monotonic()
    made.reach(machine, "begun")
    try:
        migrate(machine, made.version, made.before, behind)
        made.reach(machine, "migrated")
        colours.open_ports(machine)
        colours.start(machine, made.colour, made.version)
        _await_ready(machine, made)
        made.reach(machine, "ready")
        switch_s = _switch(machine, made)
        _watch(machine, made)
    except (ReleaseError, OSError) as error:
        raise _failed(machine, made, error) from error
    removed = _finish(machine, made)
    return {
        "changed": True,
        "version": made.version,
        "previous": made.before,
        "migrated": list(behind),
        "removed": removed,
        "switched_at": made.switched_at,
        "switch_s": round(switch_s, 3),
        "took_s": round(time.monotonic() - began, 1),
    }


def behind_schema(machine: Machine, version: str, before: str | None) -> dict[str, int]:
    """The databases that a release has to migrate, and the schema that each has.

    Raises ReleaseError when one is beyond what the release runs on, or would be beyond what the
    live release runs on.
    """
    runs_on = _schemas(machine, version)
    live_on = _schemas(machine, before) if before else {}
    behind = {}
    for name, found in json.loads(machine.tap(version, "schema") if runs_on else "{}").items():
        wanted, newest = runs_on[name]
        if found > newest:
            raise ReleaseError(
                f"{version} is built for another schema: it runs on {wanted} and {newest} of"
                f" {name}.db, which is at {found}"
            )
        if name in live_on and wanted > live_on[name][1]:
            raise ReleaseError(
                f"{version} would bring {name}.db to schema {wanted}, on which {before}, which is"
                f" live, cannot run: deploy a release in between first"
            )
        if found < wanted:
            behind[name] = found
    return behind


def migrate(machine: Machine, version: str, before: str | None, behind: dict[str, int]) -> None:
    """Bring the databases to a release's schema; each is copied first. Raises ReleaseError."""
    for name, found in behind.items():
        if found:
            _snapshot(machine, version, before or version, name)
    if behind or not _schemas(machine, version):
        machine.tap(version, "migrate")


def _schemas(machine: Machine, version: str) -> dict[str, tuple[int, int]]:
    """By database: the schema that a release migrates to, and the newest that it runs on."""
    with contextlib.suppress(KeyError, ValueError, TypeError, AttributeError):
        said = machine.manifest(version)["schema"]
        return {name: (int(wanted), int(newest)) for name, (wanted, newest) in said.items()}
    return {}  # of before releases said so


def _snapshot(machine: Machine, version: str, before: str, name: str) -> None:
    """Keep a database as it is. Raises ReleaseError."""
    words = ["backup", f"--dest={machine.data / _SNAPSHOTS}", f"--keep={_SNAPSHOTS_KEPT}"]
    if name == "bets":
        # Its audit knows the schema as it is; the new release's knows the one to come.
        machine.tap(before, *words, **_sealed(machine, before))
    else:
        machine.tap(version, *words, f"--database={name}", **_sealed(machine, version))


def _sealed(machine: Machine, version: str) -> dict[str, str]:
    """The setting that has a release encrypt copies, if there is a key and it can."""
    knows = machine.backup_key.exists() and f"{_KEY}=" in machine.tap(version, "settings")
    return {_KEY: str(machine.backup_key)} if knows else {}


def _await_ready(machine: Machine, made: Deployment) -> None:
    """Raises ReleaseError when the new colour could not take over."""
    hears_prices = made.before is not None and not _price_is_unwell()
    without = frozenset() if hears_prices else _NO_PRICE
    try:
        colours.await_ready(made.colour, made.version, without, READY_WITHIN_S)
    except ReleaseError as error:
        # A service that does not come up says more about itself than who asked for it.
        raise ReleaseError(colours.unwell(machine, made.colour) or str(error)) from error


def _price_is_unwell() -> bool:
    try:
        return colours.ask("price", "/healthz")[0] != HTTPStatus.OK
    except probe.UNANSWERED:
        return True


def _switch(machine: Machine, made: Deployment) -> float:
    """Make the new colour the live one; how long it took until it did all the work, in s.

    Raises ReleaseError.
    """
    colours.weigh(machine, made.colour, idle=False)
    began = time.monotonic()
    if made.before is not None:
        point(machine.previous, release_path(made.before))
    made.switched_at = now()
    point(machine.current, release_path(made.version))
    colours.await_takeover(made.colour)
    took = time.monotonic() - began
    colours.name_live(machine, made.colour)
    made.reach(machine, "switched")
    return took


def _watch(machine: Machine, made: Deployment) -> None:
    """Look at the new release at work, and test it through Nginx. Raises ReleaseError."""
    began = time.monotonic()
    smoke_test(made.version, ANSWERS_WITHIN_S)
    while True:
        if seen := colours.unwell(machine, made.colour):
            raise ReleaseError(seen)
        for service in colours.SERVICES:
            _see(service, made.colour)
        if time.monotonic() >= began + made.watch_s:
            return
        time.sleep(_LOOK_EVERY_S)


def smoke_test(version: str, wait_s: float) -> None:
    """The site, as everybody sees it, is this release, and works. Raises ReleaseError."""
    deadline = time.monotonic() + wait_s
    while seen := _site_is(version):
        if time.monotonic() >= deadline:
            raise ReleaseError(f"the site {seen}")
        time.sleep(_LOOK_EVERY_S)


def _site_is(version: str) -> str | None:
    """What is wrong with the site through Nginx; None when all is well."""
    try:
        found = probe.ask(probe.through_nginx, "/api/version")[1].get("version")
        if found != version:
            return f"is {found}"
        status, report = probe.ask(probe.through_nginx, "/api/healthz")
        if status != HTTPStatus.OK:
            return f"is not healthy ({report.get('checks')})"
        status, page = probe.get(probe.through_nginx, "/")
        if status != HTTPStatus.OK or b"<html" not in page:
            return f"shows no page (status {status})"
        probe.echo(probe.through_nginx)
    except probe.UNANSWERED as error:
        return f"does not answer ({error})"
    return None


def _see(service: str, colour: str) -> None:
    try:
        status, report = colours.ask_colour(service, colour, "/healthz")
    except probe.UNANSWERED as error:
        raise ReleaseError(f"{service} does not answer any more ({error})") from error
    if status != HTTPStatus.OK:
        raise ReleaseError(f"{service} is not healthy: {report.get('checks')}")


def _finish(machine: Machine, made: Deployment) -> list[str]:
    """The new release stays: end the old colour; which releases were removed."""
    made.reach(machine, "kept")
    shelf.mark(machine, made.version, worked=True)
    if made.before_colour is not None:
        try:
            colours.stop(machine, made.before_colour)
        except ReleaseError as error:
            raise ReleaseError(
                f"{made.version} is live, but the colour before it did not end ({error}):"
                " playbooks/recover.yml tries again"
            ) from error
    machine.deployment.unlink(missing_ok=True)
    return shelf.prune(machine)


def _failed(machine: Machine, made: Deployment, error: Exception) -> ReleaseError:
    """Take the deployment back; the words for what happened, and what is live now."""
    words = colours.last_words(machine, made.colour, made.since)
    try:
        result = take_back(machine, made)
    except (ReleaseError, OSError) as worse:
        result = f"putting {made.before or 'nothing'} back failed too: {worse}"
    shelf.mark(machine, made.version, worked=False)
    return ReleaseError(f"{made.version} does not work: {error}; {result}", words)


def take_back(machine: Machine, made: Deployment) -> str:
    """Make the release live that was before; the words for it. Raises ReleaseError or OSError."""
    if made.before is None or made.before_colour is None:
        machine.current.unlink(missing_ok=True)
        colours.close_ports(machine)
        colours.stop(machine, made.colour)
        machine.deployment.unlink(missing_ok=True)
        return "no release is live"
    was_live = machine.live_version() == made.version
    if was_live:
        point(machine.current, release_path(made.before))
    if made.previous is None:
        machine.previous.unlink(missing_ok=True)
    else:
        point(machine.previous, release_path(made.previous))
    colours.start(machine, made.before_colour, made.before)  # runs already, but for a reboot
    if was_live:
        colours.await_takeover(made.before_colour)
    colours.name_live(machine, made.before_colour)
    colours.stop(machine, made.colour)
    machine.deployment.unlink(missing_ok=True)
    return f"{made.before} is live"


def recover(machine: Machine) -> dict[str, object] | None:
    """End a deployment that was interrupted: finish it when it had switched and works, else take
    it back. None when there was none. Raises ReleaseError.
    """
    made = under_way(machine)
    if made is None:
        return None
    told: dict[str, Any] = {"version": made.version, "stage": made.stage}
    if machine.live_version() != made.version:
        try:
            result = take_back(machine, made)
        except OSError as error:
            raise ReleaseError(f"the interrupted deployment stays: {error}") from error
        return {"changed": True, **told, "result": f"taken back, {result}"}
    try:
        colours.open_ports(machine)
        colours.start(machine, made.colour, made.version)
        # It may have been started by the machine's start, a moment ago.
        colours.await_ready(made.colour, made.version, _NO_PRICE, READY_WITHIN_S)
        colours.await_takeover(made.colour)
        colours.name_live(machine, made.colour)
        _watch(machine, made)
    except (ReleaseError, OSError) as error:
        raise _failed(machine, made, error) from error
    _finish(machine, made)
    return {"changed": True, **told, "result": f"finished, {made.version} is live"}


def confirm(machine: Machine, version: str) -> dict[str, object]:
    """`version` is the live release already: see to it that it is also what runs."""
    colour = colours.live(machine)
    if colour is None:  # its link was lost
        colour = colours.other(None)
        point(colours.link(machine, colour), release_path(version))
    colours.open_ports(machine)
    stale = bool(colours.unwell(machine, colour, restarts=False)) or _runs_another(version)
    if stale:
        colours.name_live(machine, colour)
        colours.restart(machine, colour)
    smoke_test(version, READY_WITHIN_S if stale else ANSWERS_WITHIN_S)
    return {"changed": stale, "version": version}


def _runs_another(version: str) -> bool:
    for service in colours.SERVICES:
        with contextlib.suppress(*probe.UNANSWERED):
            if colours.ask(service, "/version")[1].get("version") != version:
                return True
    return False


def rollback(machine: Machine, *, by: str, watch_s: float) -> dict[str, object]:
    """Make the release live that was so before, by the way of a deployment. Raises ReleaseError."""
    recover(machine)
    previous = machine.previous_version()
    if previous is None:
        raise ReleaseError("there is no release before the live one")
    return deploy(machine, previous, by=by, what="rollback", watch_s=watch_s)
