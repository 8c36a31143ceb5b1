"""How the resolver tells what a transaction has changed: a message through Redis, which whoever
has traders connected picks their own from. It has numbers as they are; what a trader is shown
is made only for those who are there to see it.

A message has a line for each event behind the epoch in which they are numbered, or is the epoch
alone when that has begun. Users and numbers can be told from it without reading any event.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from tap_trading.ledger.queries import Bet
from tap_trading.ledger.resolving import Changes
from tap_trading.settlement import shown

#: What a transaction has changed is published here.
CHANNEL = "bets:changes"

_EPOCH = re.compile(r"[0-9a-f]{16}")


class Told(NamedTuple):
    """An event as it was published."""

    user_id: str
    seq: int  # 0: its user was not there
    event: str  # "" when the user was not there


def encode(changes: Changes) -> bytes:
    """Changes before they are numbered: a line for each event, its user before it."""
    # A loop over a column's bets: nothing is looked up twice.
    dumps = orjson.dumps
    lines = [b"%b %b" % (user.encode(), dumps((*bet,))) for user, bet in changes.bets]
    lines += [b"%b %d" % (user.encode(), balance) for user, balance in changes.balances.items()]
    return b"\n".join(lines)


def decode(wire: bytes) -> tuple[str, Iterator[Told]]:
    """The epoch of a message, and its events. Raises ValueError when it is none, at once or as
    its events are read.
    """
    epoch, *lines = wire.decode().split("\n")
    if not _EPOCH.fullmatch(epoch):
        raise ValueError(f"no changes: {wire[:80]!r}")
    return epoch, map(_told, lines)


def fields(event: str | bytes) -> tuple[str, dict[str, Any]]:
    """What its trader is shown of an event, with its kind. Raises ValueError when it is none."""
    try:
        said = orjson.loads(event)
        if isinstance(said, list):
            return "bet", shown.bet_fields(Bet(*said))
        return "balance", {"balance": int(said)}
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(f"no event ({error!r}): {event[:80]!r}") from error


def _told(line: str) -> Told:
    user_id, seq, event = line.split(" ", 2)
    return Told(user_id, int(seq), event)
