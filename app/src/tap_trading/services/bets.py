"""`POST /api/bets`: from a request's bytes to a durable bet and its answer."""

import re
from decimal import Decimal
from typing import Any, TypeVar

import orjson
from aiohttp import web

from tap_trading.base import logger
from tap_trading.base.clock import Clock
from tap_trading.base.errors import ProblemError
from tap_trading.base.logger import rfc3339_ms
from tap_trading.game import cell as cells
from tap_trading.game import grid
from tap_trading.ledger import bets, practice
from tap_trading.ledger.batcher import (
    Batcher,
    OverloadedError,
    StorageUnavailableError,
    Work,
)
from tap_trading.market.watch import MarketState, PriceWatch

T = TypeVar("T")

_KEY = re.compile(r"[\x21-\x7e]{1,64}")
_RATE = re.compile(r"[0-9]{1,6}(\.[0-9]{1,4})?", re.ASCII)

_REFUSALS = {
    grid.Refusal.UNKNOWN: "This cell is not on the grid that is offered now.",
    grid.Refusal.CLOSED: "This cell's column takes no more bets.",
}


class BetRoutes:
    """The bets of the HTTP API."""

    def __init__(
        self,
        *,
        batcher: Batcher,
        watch: PriceWatch,
        geometry: grid.Geometry,
        stakes: tuple[int, ...],
        clock: Clock,
    ) -> None:
        self._batcher = batcher
        self._watch = watch
        self._geometry = geometry
        self._stakes = stakes
        self._clock = clock

    async def place(self, request: web.Request) -> web.Response:
        """202 once the bet is on disk; a retry of the same request gets the same answer."""
        key = _idempotency_key(request)
        asked = _parse(await request.read(), practice.USER_ID, key)
        refusal = self._refusal(asked)
        placement = await self._answer(asked, refusal)
        if not placement.repeated:
            logger.get().info(
                "bet placed",
                user_id=asked.user_id,
                bet_id=orjson.loads(placement.answer)["bet_id"],
                cell_id=asked.cell_id,
                amount=asked.amount,
            )
        return web.Response(
            body=placement.answer.encode(), status=202, content_type="application/json"
        )

    def _refusal(self, asked: bets.BetRequest) -> ProblemError | None:
        """Why the bet cannot be placed at this moment, as far as memory can tell."""
        cell = cells.parse(asked.cell_id)
        if cell is None:
            return ProblemError(422, "unknown_cell", "This is not the id of a cell.")
        if asked.amount not in self._stakes:
            offered = ", ".join(str(stake) for stake in self._stakes)
            return ProblemError(
                422, "invalid_amount", f"The stake must be one of these, in cents: {offered}."
            )
        latest = self._watch.latest
        if latest is None or self._watch.state() is MarketState.SUSPENDED:
            return ProblemError(
                503, "feed_stale", "There is no live price; try again soon.", retry_after_s=5
            )
        refused = grid.refusal(self._geometry, self._clock(), latest.price, cell)
        return ProblemError(422, refused.value, _REFUSALS[refused]) if refused else None

    async def _answer(self, asked: bets.BetRequest, refusal: ProblemError | None) -> bets.Placement:
        """Place the bet, or find the first answer when this retries one that was placed in
        time; else the refusal.
        """
        if refusal is None:
            return await self._run(self._placing(asked))
        earlier = await self._run(lambda connection: bets.earlier_answer(connection, asked))
        if earlier is None:
            raise refusal
        return earlier

    def _placing(self, asked: bets.BetRequest) -> Work[bets.Placement]:
        now = self._clock()
        bet_id = bets.new_id("bet", now)
        answer = orjson.dumps(
            {
                "status": "accepted",
                "bet_id": bet_id,
                "cell_id": asked.cell_id,
                "amount": asked.amount,
                "balance": None,
                "placed_at": rfc3339_ms(now),
            }
        ).decode()
        return lambda connection: bets.place(connection, asked, bet_id, now, answer)

    async def _run(self, work: Work[T]) -> T:
        """Run a job in the write path, its failures told as problems."""
        try:
            return await self._batcher.run(work)
        except bets.DuplicateCellError:
            raise ProblemError(
                409, "duplicate_cell", "There is a bet on this cell already."
            ) from None
        except bets.IdempotencyKeyReusedError:
            raise ProblemError(
                422, "idempotency_key_reused", "This Idempotency-Key was used for another request."
            ) from None
        except OverloadedError as error:
            raise ProblemError(
                503, "overloaded", f"Nothing was placed: {error}.", retry_after_s=1
            ) from error
        except StorageUnavailableError as error:
            raise ProblemError(
                503,
                "storage_unavailable",
                "Nothing was placed: bets cannot be written at the moment.",
                retry_after_s=5,
            ) from error


def _idempotency_key(request: web.Request) -> str:
    key = request.headers.get("Idempotency-Key", "")
    if not key:
        raise ProblemError(400, "missing_idempotency_key", "The header Idempotency-Key is missing.")
    if not _KEY.fullmatch(key):
        raise ProblemError(
            400, "malformed", "Idempotency-Key must be 1 to 64 visible ASCII characters."
        )
    return key


def _parse(body: bytes, user_id: str, key: str) -> bets.BetRequest:
    """Read a bet's body. Raises ProblemError `malformed` or `invalid_amount`."""
    try:
        fields: Any = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProblemError(400, "malformed", f"The body is not JSON: {error}.") from None
    if not isinstance(fields, dict):
        raise ProblemError(400, "malformed", "The body must be a JSON object.")
    if unknown := sorted(fields.keys() - {"cell_id", "amount", "min_reward_rate"}):
        raise ProblemError(400, "malformed", f"Unknown field: {unknown[0][:64]}.")
    if missing := [name for name in ("cell_id", "amount") if name not in fields]:
        raise ProblemError(400, "malformed", f"The field {missing[0]} is missing.")
    cell_id, amount = fields["cell_id"], fields["amount"]
    if not isinstance(cell_id, str):
        raise ProblemError(400, "malformed", "cell_id must be a string.")
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise ProblemError(400, "malformed", "amount must be a number of cents.")
    if not isinstance(amount, int):
        raise ProblemError(422, "invalid_amount", "The stake must be a whole number of cents.")
    return bets.BetRequest(user_id, key, cell_id, amount, _rate_bps(fields.get("min_reward_rate")))


def _rate_bps(rate: object) -> int | None:
    """A decimal string such as "1.0582" in basis points."""
    if rate is None:
        return None
    if not isinstance(rate, str) or not _RATE.fullmatch(rate) or not Decimal(rate):
        raise ProblemError(
            400, "malformed", 'min_reward_rate must be a decimal string such as "1.0582".'
        )
    return int(Decimal(rate) * 10_000)
