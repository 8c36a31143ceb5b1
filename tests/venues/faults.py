"""What can be wrong with a connection, and messages that are broken beyond reading."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

Kind = Literal["drop", "close", "stall", "resume", "repeat", "reorder", "corrupt"]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault, and when it happens by itself: after so many messages of a connection, or so
    many seconds after the player's start; with neither, it is there from the beginning.

    drop: the connection is reset. close: it is closed as the protocol has it. stall: it
    stays open and silent. resume: it speaks again. repeat, reorder, corrupt: the next
    `count` messages are sent twice, change places in pairs, or cannot be read.
    """

    kind: Kind
    after: int | None = None
    at_s: float | None = None
    connection: int | None = None  # number of the connection, from 0; None: every one
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """`kind[:after=N][:at_s=N][:connection=N][:count=N]`. Raises ValueError."""
        kind, *settings = text.split(":")
        if kind not in get_args(Kind):
            raise ValueError(f"no fault is called {kind!r}")
        given: dict[str, Any] = {}
        for setting in settings:
            name, _, value = setting.partition("=")
            if name not in ("after", "at_s", "connection", "count"):
                raise ValueError(f"a fault has no {name!r}")
            given[name] = float(value) if name == "at_s" else int(value)
        return cls(cast("Kind", kind), **given)


def corrupted(text: str, rng: random.Random) -> str:
    """The message, broken in one of several ways. None of them leaves a readable trade."""
    ways: list[Callable[[str, random.Random], str]] = [_cut, _noise, _emptied, _swollen]
    return rng.choice(ways)(text, rng)


def _cut(text: str, rng: random.Random) -> str:
    return text[: rng.randrange(max(len(text) - 1, 1))]


def _noise(text: str, rng: random.Random) -> str:
    at = rng.randrange(len(text) + 1)
    return text[:at] + "\x00\x1b]" + text[at:]


def _emptied(text: str, rng: random.Random) -> str:
    """Whole JSON, but every string is null: also those that say what it is."""
    return _changed(text, lambda value: None if isinstance(value, str) else value)


def _swollen(text: str, rng: random.Random) -> str:
    """Whole JSON, but every number is too large, also in strings."""

    def swell(value: object) -> object:
        if isinstance(value, bool) or value is None:
            return value
        if isinstance(value, int | float):
            return int("9" * 40)
        is_number = isinstance(value, str) and value.replace(".", "", 1).isdecimal()
        return "9" * 400 if is_number else value

    return _changed(text, swell)


def _changed(text: str, change: Callable[[object], object]) -> str:
    def walk(value: object) -> object:
        if isinstance(value, dict):
            return {name: walk(item) for name, item in value.items()}
        if isinstance(value, list):
            return [walk(item) for item in value]
        return change(value)

    return json.dumps(walk(json.loads(text)))
