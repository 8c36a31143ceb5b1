"""Ids of bets, users and ledger entries: unique, and sorting by time."""

import secrets


def new_id(kind: str, now_ms: int) -> str:
    """A unique id that sorts by time, such as `bet_019ab3c2d4e5…`."""
    return f"{kind}_{now_ms:012x}{secrets.token_hex(8)}"
