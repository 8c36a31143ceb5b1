"""Requests that a wallet sends too fast, told as problems."""

from tap_trading.auth.limits import WalletLimits
from tap_trading.auth.sessions import Session
from tap_trading.base.errors import ProblemError


def take(limits: WalletLimits, session: Session) -> None:
    """Count a request of the session's wallet. Raises ProblemError `rate_limited`."""
    wait_s = limits.take(session.user_id)
    if wait_s is not None:
        raise ProblemError(
            429, "rate_limited", "Too many requests of this wallet.", retry_after_s=wait_s
        )
