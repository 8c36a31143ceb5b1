"""The installed releases: which are kept, and which are removed.

Kept are the live release, the one before it, pinned ones, and the last five that worked; one that
was tried and failed goes with the next that works.
"""

import shutil

from tap_release.colours import COLOURS, version_of
from tap_release.machine import FAILED, PINNED, VERSION, WORKED, Machine, ReleaseError

#: So many releases that worked are kept besides those that are kept anyway.
KEPT = 5


def prune(machine: Machine) -> list[str]:
    """Remove the releases that failed and those that worked long ago; their versions."""
    found = [path for path in machine.releases.iterdir() if VERSION.fullmatch(path.name)]
    failed = [path for path in found if (path / FAILED).exists()]
    worked = [path for path in found if (path / WORKED).exists() and path not in failed]
    worked.sort(key=lambda path: (path / WORKED).stat().st_mtime_ns)
    kept = {machine.live_version(), machine.previous_version()}
    kept |= {version_of(machine, colour) for colour in COLOURS}
    kept |= {path.name for path in found if (path / PINNED).exists()}
    removed = sorted(path for path in failed + worked[:-KEPT] if path.name not in kept)
    for path in removed:
        # Never half there under its name; what is left of it the next installation sweeps away.
        doomed = path.with_name(f".incoming-{path.name}")
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return [path.name for path in removed]


def pin(machine: Machine, version: str, *, pinned: bool) -> dict[str, object]:
    """Keep a release for ever, or no longer than others. Raises ReleaseError."""
    folder = machine.releases / version
    if not VERSION.fullmatch(version) or not folder.is_dir():
        raise ReleaseError(f"{version} is not installed")
    changed = (folder / PINNED).exists() is not pinned
    if pinned:
        (folder / PINNED).touch()
    else:
        (folder / PINNED).unlink(missing_ok=True)
    return {"changed": changed, "version": version}


def mark(machine: Machine, version: str, *, worked: bool) -> None:
    """Note on a release whether it worked when it was tried last."""
    folder = machine.releases / version
    if worked:
        (folder / FAILED).unlink(missing_ok=True)
        (folder / WORKED).touch()
    else:
        (folder / FAILED).touch()
