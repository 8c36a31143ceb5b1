"""How a bet is shown, over HTTP and over the stream alike."""

from typing import Any

from tap_trading.base.logger import rfc3339_ms
from tap_trading.ledger.queries import Bet
from tap_trading.market.offer import decimal_rate


def bet_fields(bet: Bet) -> dict[str, Any]:
    """A bet as its owner sees it."""
    return {
        "bet_id": bet.bet_id,
        "cell_id": bet.cell_id,
        "amount": bet.amount,
        "status": bet.status,
        "reward_rate": None if bet.reward_rate_bps is None else decimal_rate(bet.reward_rate_bps),
        "payout_amount": bet.payout_amount,
        "placed_at": rfc3339_ms(bet.placed_at),
        "resolved_at": None if bet.resolved_at is None else rfc3339_ms(bet.resolved_at),
    }
