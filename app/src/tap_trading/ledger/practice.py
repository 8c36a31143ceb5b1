"""The practice user: every bet belongs to it for as long as there is no sign-in."""

import apsw

USER_ID = "user_practice"


def ensure_user(connection: apsw.Connection, now_ms: int) -> None:
    """Create the practice user if it is not there."""
    connection.execute(
        "INSERT INTO users (id, wallet_address, created_at, updated_at)"
        " VALUES (?, 'practice', ?, ?) ON CONFLICT DO NOTHING",
        (USER_ID, now_ms, now_ms),
    )
