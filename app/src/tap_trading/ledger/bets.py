"""Placing bets in the database: jobs for the batcher, and the questions that go with them."""

import hashlib
import secrets
from dataclasses import dataclass

import apsw
import orjson


class DuplicateCellError(Exception):
    """The user has a bet on this cell already."""


class IdempotencyKeyReusedError(Exception):
    """The key was used for another request."""


@dataclass(frozen=True, slots=True)
class BetRequest:
    """What a trader asks for."""

    user_id: str
    idempotency_key: str
    cell_id: str
    amount: int  # cents
    min_reward_rate_bps: int | None

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of what is asked, so that a retry can be told from another request."""
        asked = (self.cell_id, self.amount, self.min_reward_rate_bps)
        return hashlib.sha256(orjson.dumps(asked)).digest()


@dataclass(frozen=True, slots=True)
class Placement:
    """The answer to a placed bet, as it was first given and is given again to a retry."""

    answer: str  # JSON
    repeated: bool


def new_id(kind: str, now_ms: int) -> str:
    """A unique id that sorts by time, such as `bet_019ab3c2d4e5…`."""
    return f"{kind}_{now_ms:012x}{secrets.token_hex(8)}"


def place(
    connection: apsw.Connection, request: BetRequest, bet_id: str, now_ms: int, answer: str
) -> Placement:
    """Insert a pending bet, unless this very request was answered before.

    Raises DuplicateCellError or IdempotencyKeyReusedError; nothing is kept then.
    """
    if (earlier := earlier_answer(connection, request)) is not None:
        return earlier
    try:
        connection.execute(
            "INSERT INTO bets (id, user_id, cell_id, amount, min_reward_rate_bps, status,"
            " placed_at) VALUES (?, ?, ?, ?, ?, 'pending', ?)",
            (
                bet_id,
                request.user_id,
                request.cell_id,
                request.amount,
                request.min_reward_rate_bps,
                now_ms,
            ),
        )
    except apsw.ConstraintError as error:
        if "bets.user_id, bets.cell_id" in str(error):
            raise DuplicateCellError(request.cell_id) from error
        raise
    connection.execute(
        "INSERT INTO idempotency_keys VALUES (?, ?, ?, ?, ?, ?)",
        (
            request.user_id,
            request.idempotency_key,
            request.fingerprint,
            bet_id,
            answer,
            now_ms,
        ),
    )
    return Placement(answer, repeated=False)


def earlier_answer(connection: apsw.Connection, request: BetRequest) -> Placement | None:
    """The first answer to this very request, if it was answered before.

    Asked in the write path, so that a first attempt that still waits there comes before.
    Raises IdempotencyKeyReusedError when the key belongs to another request.
    """
    known = connection.execute(
        "SELECT request_hash, answer FROM idempotency_keys WHERE user_id = ? AND key = ?",
        (request.user_id, request.idempotency_key),
    ).fetchone()
    if known is None:
        return None
    fingerprint, answer = known
    if fingerprint != request.fingerprint:
        raise IdempotencyKeyReusedError(request.idempotency_key)
    return Placement(answer, repeated=True)
