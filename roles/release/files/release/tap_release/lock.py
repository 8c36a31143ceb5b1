"""The lock of deployments: who does what since when, with an end, and a way to break it.

It is a file that people can read. Each holder has a token; every later step of a deployment
shows it, so one that lost the lock meanwhile changes nothing any more. A lock expires, since a
controller may be gone for good; its own holder, the same person on the same host, may take it
again at once.
"""

import secrets
import time
from datetime import UTC, datetime
from typing import Any

from tap_release.machine import Machine, ReleaseError, now, read_json, write_json

#: A lock ends by itself after so long without a step of its holder, in s.
EXPIRES_S = 600


def _at(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def held(machine: Machine) -> dict[str, Any] | None:
    """The lock, unless there is none or it has expired."""
    found = read_json(machine.lock)
    if found is None or found.get("expires_at", 0) <= time.time():
        return None
    return found


def words(lock: dict[str, Any]) -> str:
    """Who has it, for people."""
    return (
        f"{lock.get('who')} has locked deployments since {lock.get('since')} ({lock.get('what')});"
        f" the lock ends at {lock.get('expires')}, or with playbooks/unlock.yml"
    )


def take(machine: Machine, who: str, what: str) -> str:
    """Take the lock; its token. Raises ReleaseError, which says who has it."""
    before = held(machine)
    if before is not None and before.get("who") != who:
        raise ReleaseError(words(before))
    token = secrets.token_hex(8)
    _write(machine, {"token": token, "who": who, "what": what, "since": now()})
    return token


def prove(machine: Machine, token: str) -> None:
    """Show that the lock is ours still, and keep it. Raises ReleaseError."""
    found = held(machine)
    if found is None:
        raise ReleaseError("the lock of this deployment has expired; run it again")
    if found.get("token") != token:
        raise ReleaseError(f"this deployment has lost its lock: {words(found)}")
    _write(machine, found)


def drop(machine: Machine, token: str | None) -> dict[str, Any] | None:
    """End the lock if it is this token's, or whosever it is; what it was."""
    found = held(machine)
    if found is None or token not in (None, found.get("token")):
        return None
    machine.lock.unlink(missing_ok=True)
    return found


def _write(machine: Machine, lock: dict[str, Any]) -> None:
    ends = time.time() + EXPIRES_S
    write_json(machine.lock, {**lock, "expires": _at(ends), "expires_at": ends})
