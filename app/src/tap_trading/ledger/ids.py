"""Identifiers of users, bets and ledger entries."""

import secrets
from itertools import count

#: What tells this process's ids from another's, and how many it has made.
_PROCESS = secrets.token_hex(5)
_MADE = count()


def new_id(kind: str, now_ms: int) -> str:
    """A unique id that sorts by time, such as `bet_019ab3c2d4e5…`; those of one process and
    millisecond sort as they were made. No secret: the next one can be guessed.
    """
    return f"{kind}_{now_ms:012x}{_PROCESS}{next(_MADE) & 0xFFFFFF:06x}"
