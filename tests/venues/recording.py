"""Recorded WebSocket traffic: `*.ndjson.gz`, one JSON object a line.

`ts` is the recorder's time (Unix seconds as text), `dir` says who spoke, `conn` on which
connection, `data` is the text. Only what the exchange said (`in`) is played.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path

from venues.script import Line


class Recording:
    """What an exchange said, for every connection anew or as one timeline."""

    def __init__(self, lines: Sequence[tuple[float, str]], *, speaks_first: bool = False) -> None:
        self._lines = lines
        self.speaks_first = speaks_first

    @classmethod
    def read(cls, path: Path, conn: str | None = None) -> "Recording":
        """A file; of its connections only `conn`, if given. Nothing sent: speaks first."""
        heard: list[tuple[Decimal, str]] = []
        asked = False
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                entry = json.loads(line)
                asked |= entry["dir"] == "out"
                if entry["dir"] == "in" and conn in (None, entry["conn"]):
                    heard.append((Decimal(entry["ts"]), entry["data"]))
        began = heard[0][0] if heard else Decimal(0)
        # Several connections merged: now and then one clock reading is behind the other.
        return cls([(float(ts - began), text) for ts, text in heard], speaks_first=not asked)

    def lines(self, since_s: float) -> Iterator[Line]:
        """What is said from that moment of the recording on."""
        for at, text in self._lines:
            if at >= since_s:
                yield Line(at, partial(str, text))

    def answers(self, said: str, since_s: float) -> Sequence[str]:
        """Replies are in the recording already."""
        return ()

    def heartbeat(self) -> str | None:
        """So are heartbeats."""
        return None
