"""Whether this process is of the live release.

During a deployment two releases run side by side and share the public ports. A link says
which of them is live; moving it is the whole of the switch. Each process looks at it often:
the live one accepts connections, makes the market and settles, the other one stands by.
"""

from collections.abc import Callable
from pathlib import Path

#: How long a process may not notice that the link was moved, in s.
NOTICED_WITHIN_S = 0.025

Live = Callable[[], bool]


def always() -> bool:
    """There is but one release: it is live."""
    return True


def live_of(live_link: Path | None, release_link: Path | None) -> Live:
    """Tells whether `live_link` points to the release that `release_link` points to now.

    Without these links, outside a machine with two releases, every process is live.
    """
    if live_link is None or release_link is None:
        return always
    own = _identity(release_link)

    def live() -> bool:
        return own is not None and _identity(live_link) == own

    return live


def _identity(path: Path) -> tuple[int, int] | None:
    """What is the same for two paths to one folder; None when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
