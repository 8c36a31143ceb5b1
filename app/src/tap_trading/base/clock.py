"""The clock comes in from outside, so that tests can drive time."""

import time
from collections.abc import Callable

#: Unix time, in milliseconds.
Clock = Callable[[], int]


def system_clock() -> int:
    """The machine's time, Unix ms."""
    return time.time_ns() // 1_000_000
