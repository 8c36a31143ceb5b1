"""A lease with fencing: of several processes one does a job, and a stalled one cannot come
back and do it as well.

The lease is a row of the table `leases` in the database that the job writes to. Whoever
takes it counts its token up. Its holder checks the token inside each of its transactions:
one that was taken over writes nothing any more, however late it notices.
"""

import apsw


class FencedError(Exception):
    """Somebody else holds the lease: the transaction must not be committed."""


class Lease:
    """A claim to a job, by name."""

    def __init__(self, name: str, holder: str, ttl_ms: int) -> None:
        self._name = name
        self._holder = holder
        self._ttl_ms = ttl_ms
        self._token: int | None = None

    @property
    def token(self) -> int | None:
        """What it was last taken with; the next one's is one more."""
        return self._token

    def take(self, connection: apsw.Connection, now_ms: int) -> bool:
        """Take the lease if it is free or expired; whether it is ours now.

        Call it, like the others, inside a transaction that may write. One that expires
        later than it could is of a clock that was set back since, and counts as expired.
        """
        row = connection.execute(
            "INSERT INTO leases (name, holder, token, expires_at) VALUES (?1, ?2, 1, ?4)"
            " ON CONFLICT (name) DO UPDATE"
            " SET holder = excluded.holder, token = token + 1, expires_at = excluded.expires_at"
            " WHERE expires_at <= ?3 OR expires_at > ?4 RETURNING token",
            (self._name, self._holder, now_ms, now_ms + self._ttl_ms),
        ).fetchone()
        self._token = row[0] if row else None
        return row is not None

    def renew(self, connection: apsw.Connection, now_ms: int) -> None:
        """Prove that the lease is ours still, and keep it. Raises FencedError."""
        connection.execute(
            "UPDATE leases SET expires_at = ? WHERE name = ? AND token = ?",
            (now_ms + self._ttl_ms, self._name, self._token),
        )
        if self._token is None or not connection.changes():
            raise FencedError(f"another process has taken over {self._name}")

    def release(self, connection: apsw.Connection) -> None:
        """Let the next one take it at once; nothing when it is no longer ours."""
        connection.execute(
            "UPDATE leases SET expires_at = 0 WHERE name = ? AND token = ?",
            (self._name, self._token),
        )
        self._token = None
