"""The ordinary way of `POST /api/bets`, for requests that the lane does not take."""

from aiohttp import web

from tap_trading.auth.limits import WalletLimits
from tap_trading.auth.sessions import Sessions
from tap_trading.ledger.batcher import Batcher, OverloadedError, StorageUnavailableError
from tap_trading.ledger.placing import BetRequest, Outcome, Placed
from tap_trading.services import auth, desk, limited


class BetRoutes:
    """Placing bets over the HTTP API."""

    def __init__(
        self,
        *,
        bet_desk: desk.BetDesk,
        batcher: Batcher[BetRequest, Outcome],
        sessions: Sessions,
        limits: WalletLimits,
    ) -> None:
        self._desk = bet_desk
        self._batcher = batcher
        self._sessions = sessions
        self._limits = limits

    async def place(self, request: web.Request) -> web.Response:
        """202 once the bet is on disk; a retry of the same request gets the same answer."""
        now = self._desk.clock()
        session = await auth.authenticate(request, self._sessions)
        limited.take(self._limits, session)
        key = request.headers.get("Idempotency-Key")
        bet = self._desk.request(session.user_id, key, await request.read(), now)
        try:
            outcome = await self._batcher.handle(bet)
        except (OverloadedError, StorageUnavailableError) as error:
            raise desk.problem(error) from error
        if not isinstance(outcome, Placed):
            raise desk.problem(outcome)
        return web.Response(
            body=desk.accepted(outcome),
            status=202,
            content_type="application/json",
            charset="utf-8",
        )
