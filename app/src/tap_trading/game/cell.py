"""A cell of the grid and its id, which says everything needed to settle it for ever.

`btc-usd:<start, unix s>:<width s>:<low, cents>:<high, cents>`
"""

import re
from dataclasses import dataclass
from functools import lru_cache

SYMBOL = "btc-usd"

_NUMBER = r"(0|[1-9][0-9]{0,14})"
_CELL_ID = re.compile(rf"{SYMBOL}:{_NUMBER}:{_NUMBER}:{_NUMBER}:{_NUMBER}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Cell:
    """A price band in a time window."""

    start: int  # Unix seconds; the window is [start, start + width)
    width: int  # seconds
    low: int  # cents
    high: int  # cents

    @property
    def cell_id(self) -> str:
        """The one spelling of this cell."""
        return f"{SYMBOL}:{self.start}:{self.width}:{self.low}:{self.high}"


@lru_cache(maxsize=4096)  # the cells of the moment are asked for again and again
def parse(cell_id: str) -> Cell | None:
    """The cell of an id in its one spelling (no signs, no leading zeros); else None."""
    match = _CELL_ID.fullmatch(cell_id)
    if match is None:
        return None
    start, width, low, high = map(int, match.groups())
    if width == 0 or high <= low:
        return None
    return Cell(start, width, low, high)
