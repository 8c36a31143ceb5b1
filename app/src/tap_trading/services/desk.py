"""The betting desk: from a bet's headers and body to a request for the books, and from an
outcome to an answer. Both ways of a bet, the lane and the ordinary route, end here.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import orjson

from tap_trading.base import logger, metrics
from tap_trading.base.clock import Clock
from tap_trading.base.disk import DiskGuard
from tap_trading.base.errors import ProblemError
from tap_trading.base.logger import rfc3339_ms
from tap_trading.game import cell as cells
from tap_trading.game import grid
from tap_trading.ledger.batcher import OverloadedError, StorageUnavailableError
from tap_trading.ledger.ids import new_id
from tap_trading.ledger.placing import BetRequest, Placed, Refusal
from tap_trading.market.watch import MarketState, PriceWatch
from tap_trading.services import body as bodies

_KEY = re.compile(r"[\x21-\x7e]{1,64}")
_BPS = 10_000
_RATE = re.compile(r"[0-9]{1,6}(\.[0-9]{1,4})?", re.ASCII)

_REQUIRED = frozenset({"cell_id", "amount"})
_OPTIONAL = frozenset({"min_reward_rate"})

_PROBLEMS: Mapping[Refusal, tuple[int, str]] = {
    Refusal.UNKNOWN_CELL: (422, "This cell is not on the grid that is offered now."),
    Refusal.CELL_CLOSED: (422, "This cell's column takes no more bets."),
    Refusal.INVALID_AMOUNT: (422, "The stake must be one of those offered."),
    Refusal.FEED_STALE: (503, "There is no live price; try again soon."),
    Refusal.STORAGE_UNAVAILABLE: (
        503,
        "The site has no room for new bets at the moment; nothing was placed.",
    ),
    Refusal.UNKNOWN_ACCOUNT: (401, "This session's account does not exist; sign in again."),
    Refusal.KEY_REUSED: (422, "This Idempotency-Key was used for another request."),
    Refusal.DUPLICATE_CELL: (409, "There is a bet on this cell already."),
    Refusal.LIMIT_EXCEEDED: (422, "The most that may be at stake here is reached."),
    Refusal.INSUFFICIENT_FUNDS: (402, "The balance does not cover this stake."),
}
#: A feed may be back at once; somebody has to make room on a disk.
_RETRY_S: Mapping[Refusal, int] = {Refusal.FEED_STALE: 5, Refusal.STORAGE_UNAVAILABLE: 30}


class BetDesk:
    """Checks bets against the moment, and words what became of them."""

    def __init__(
        self,
        *,
        watch: PriceWatch,
        disk: DiskGuard,
        geometry: grid.Geometry,
        stakes: tuple[int, ...],
        clock: Clock,
    ) -> None:
        self._watch = watch
        self._disk = disk
        self._width_s = geometry.width_s
        self._stakes = frozenset(stakes)
        self.clock = clock

    def request(self, user_id: str, key: str | None, body: bytes, now: int) -> BetRequest:
        """What the trader asks for, judged by the moment of its arrival, `now` in Unix ms.

        Raises ProblemError when it is not a bet at all: `missing_idempotency_key`,
        `malformed`, or `invalid_amount` for a stake that is no whole number.
        """
        key = _idempotency_key(key)
        fields = bodies.fields(body, _REQUIRED, _OPTIONAL)
        cell_id, amount = fields["cell_id"], fields["amount"]
        if not isinstance(cell_id, str):
            raise ProblemError(400, "malformed", "cell_id must be a string.")
        if type(amount) is not int:
            raise _not_an_amount(amount)
        min_rate = _rate_bps(fields.get("min_reward_rate"))
        refusal, offered = self._judge(cell_id, amount, now)
        # What is wrong with the bet itself was looked for first: there it is no use to try again.
        if refusal is None and self._disk.is_full:
            refusal, offered = Refusal.STORAGE_UNAVAILABLE, 0
        liability = amount * offered // _BPS
        return BetRequest(
            *(new_id("bet", now), user_id, key, cell_id, amount, min_rate, now, refusal, liability)
        )

    def _judge(self, cell_id: str, amount: int, now: int) -> tuple[Refusal | None, int]:
        """Why there is no bet on this cell at this moment, and the rate that it is offered at,
        in basis points (0: none).
        """
        cell = cells.parse(cell_id)
        if cell is None:
            return Refusal.UNKNOWN_CELL, 0
        if amount not in self._stakes:
            return Refusal.INVALID_AMOUNT, 0
        watch = self._watch
        if watch.state() is MarketState.SUSPENDED:
            return Refusal.FEED_STALE, 0
        if grid.has_closed(self._width_s, now, cell):
            return Refusal.CELL_CLOSED, 0
        rate = watch.offered.get(cell_id, 0)
        return (None if rate else Refusal.UNKNOWN_CELL), rate


def accepted(placed: Placed) -> bytes:
    """The body of the 202, the same for every retry."""
    return orjson.dumps(
        {
            "status": "accepted",
            "bet_id": placed.bet_id,
            "cell_id": placed.cell_id,
            "amount": placed.amount,
            "balance": placed.balance,
            "placed_at": rfc3339_ms(placed.placed_at),
        }
    )


def problem(outcome: Refusal | Exception) -> ProblemError:
    """What the trader is told when there is no bet."""
    match outcome:
        case Refusal():
            status, detail = _PROBLEMS[outcome]
            return ProblemError(status, outcome.value, detail, retry_after_s=_RETRY_S.get(outcome))
        case ProblemError():
            return outcome
        case OverloadedError() | StorageUnavailableError():
            return unwritten(outcome, "Nothing was placed")
        case _:
            metrics.ERRORS.labels("request").inc()
            logger.get().error("bet failed", exc_info=outcome)
            return ProblemError(500, "internal", "Something broke on our side; nothing was placed.")


def unwritten(error: OverloadedError | StorageUnavailableError, consequence: str) -> ProblemError:
    """What is answered when the write path did not take a job."""
    if isinstance(error, OverloadedError):
        return ProblemError(503, "overloaded", f"{consequence}: {error}.", retry_after_s=1)
    return ProblemError(
        503,
        "storage_unavailable",
        f"{consequence}: the books cannot be written at the moment.",
        retry_after_s=5,
    )


def _idempotency_key(key: str | None) -> str:
    if not key:
        raise ProblemError(400, "missing_idempotency_key", "The header Idempotency-Key is missing.")
    if not _KEY.fullmatch(key):
        raise ProblemError(
            400, "malformed", "Idempotency-Key must be 1 to 64 visible ASCII characters."
        )
    return key


def _not_an_amount(amount: Any) -> ProblemError:
    if isinstance(amount, float):
        return ProblemError(422, "invalid_amount", "The stake must be a whole number of cents.")
    return ProblemError(400, "malformed", "amount must be a number of cents.")


def _rate_bps(rate: object) -> int | None:
    """A decimal string such as "1.0582" in basis points."""
    if rate is None:
        return None
    if not isinstance(rate, str) or not _RATE.fullmatch(rate) or not Decimal(rate):
        raise ProblemError(
            400, "malformed", 'min_reward_rate must be a decimal string such as "1.0582".'
        )
    return int(Decimal(rate) * _BPS)
