"""The calls that only read: one's account, bets and ledger, and the market."""

import functools
import re
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple, TypeVar

import apsw
from aiohttp import web

from tap_trading.archive.history import History
from tap_trading.archive.shelf import Shelf
from tap_trading.auth.sessions import Sessions
from tap_trading.base import logger
from tap_trading.base.clock import Clock
from tap_trading.base.db import DatabaseError, ReaderPool
from tap_trading.base.errors import ProblemError
from tap_trading.base.logger import rfc3339_ms
from tap_trading.base.metrics import ERRORS
from tap_trading.game.cell import SYMBOL
from tap_trading.ledger import queries
from tap_trading.ledger.queries import Bet, Cursor, CursorForm, Entry, Page
from tap_trading.market.offer import grid_fields
from tap_trading.market.price_store import StoredBar
from tap_trading.market.watch import MarketState, PriceWatch
from tap_trading.services import auth
from tap_trading.services.http import json_response
from tap_trading.settlement import evidence, shown
from tap_trading.settlement.evidence import Decision

T = TypeVar("T")

_CURRENCY = "USD"
_LIMIT = re.compile(r"[1-9][0-9]{0,2}")
#: What may stand where a bet's id stands; asking for anything else is not worth a query.
_ID = re.compile(r"[!-~]{1,64}")

#: What a client is told to wait when the books cannot be read, in s.
_RETRY_AFTER_S = 5
#: Names of wrong query parameters are repeated to the client up to this many characters.
_SHOWN = 64


class ReadRoutes:
    """The reading calls of the HTTP API."""

    def __init__(
        self,
        *,
        readers: ReaderPool,
        prices: ReaderPool,
        sessions: Sessions,
        watch: PriceWatch,
        clock: Clock,
        shelf: Shelf,
    ) -> None:
        self._shelf = shelf
        self._readers = readers
        self._prices = prices
        self._sessions = sessions
        self._watch = watch
        self._clock = clock

    async def me(self, request: web.Request) -> web.Response:
        """Who is signed in, and what they have."""
        session = await auth.authenticate(request, self._sessions)
        _parameters(request)
        balance = await self._ask(lambda books: queries.balance(books, session.user_id))
        if balance is None:
            raise ProblemError(
                401, "unauthenticated", "This session's account does not exist; sign in again."
            )
        return _unstored(
            {
                "user_id": session.user_id,
                "address": session.address,
                "balance": balance,
                "currency": _CURRENCY,
            }
        )

    async def bets(self, request: web.Request) -> web.Response:
        """A page of one's bets, newest first."""
        user_id = (await auth.authenticate(request, self._sessions)).user_id
        asked = _parameters(request, {"status", "cursor", "limit"})
        status = _status(asked.get("status"))
        cursor, limit = _place(asked.get("cursor"), queries.BET_CURSORS), _limit(asked.get("limit"))

        def read(books: apsw.Connection) -> tuple[Page[Bet], int | None]:
            history = History(books, self._shelf)
            page = history.bets(user_id, status=status, cursor=cursor, limit=limit)
            return page, history.archived_before()

        page, before = await self._ask(read)
        items = [shown.bet_fields(bet) for bet in page.items]
        return _page(items, page.next_cursor, queries.BET_CURSORS, before)

    async def bet(self, request: web.Request) -> web.Response:
        """One of one's bets; 404 for anyone else's."""
        user_id = (await auth.authenticate(request, self._sessions)).user_id
        _parameters(request)
        bet_id = request.match_info["id"]
        look = functools.partial(_look_up, user_id, bet_id, self._shelf)
        seen = await self._ask(look) if _ID.fullmatch(bet_id) else None
        if seen is None:
            raise ProblemError(404, "not_found", "You have no bet with this id.")
        fields = shown.bet_fields(seen.bet)
        return _unstored({**fields, "evidence": await self._evidence(seen)})

    async def _evidence(self, seen: "_Seen") -> dict[str, object] | None:
        """What the bet was decided by, as far as it is; None for one that was never placed."""
        found, bars = seen.found, seen.bars
        if found is None or seen.bet.status == "insufficient_funds":
            return None
        if bars is None:
            cell = found.cell
            bars = await self._ask(lambda prices: evidence.window_bars(prices, cell), self._prices)
        return evidence.shown(found, bars)

    async def ledger(self, request: web.Request) -> web.Response:
        """A page of one's ledger entries, newest first."""
        user_id = (await auth.authenticate(request, self._sessions)).user_id
        asked = _parameters(request, {"cursor", "limit"})
        cursor = _place(asked.get("cursor"), queries.ENTRY_CURSORS)
        limit = _limit(asked.get("limit"))

        def read(books: apsw.Connection) -> tuple[Page[Entry], int | None]:
            history = History(books, self._shelf)
            page = history.entries(user_id, cursor=cursor, limit=limit)
            return page, history.archived_before()

        page, before = await self._ask(read)
        items = [_entry_fields(entry) for entry in page.items]
        return _page(items, page.next_cursor, queries.ENTRY_CURSORS, before)

    async def market(self, request: web.Request) -> web.Response:
        """The price and the grid at this moment; there are no cells while no bets are taken."""
        _parameters(request)
        latest, state = self._watch.latest, self._watch.state()
        offer = None if state is MarketState.SUSPENDED else self._watch.offer
        return _unstored(
            {
                "symbol": SYMBOL,
                "price": latest.price if latest else None,
                "server_time": rfc3339_ms(self._clock()),
                "state": state,
                **grid_fields(offer),
            }
        )

    async def _ask(
        self, question: Callable[[apsw.Connection], T], readers: ReaderPool | None = None
    ) -> T:
        """Ask the books, or others. Raises ProblemError `storage_unavailable`."""
        try:
            return await (readers or self._readers).run(question)
        except DatabaseError as error:
            ERRORS.labels("read").inc()
            logger.get().error("books not read", error=str(error))
            raise ProblemError(
                503,
                "storage_unavailable",
                "The books cannot be read at the moment; try again soon.",
                retry_after_s=_RETRY_AFTER_S,
            ) from error


class _Seen(NamedTuple):
    """A bet as it was found."""

    bet: Bet
    found: Decision | None
    bars: list[StoredBar] | None  # of its window; None: they are where the prices are


def _look_up(user_id: str, bet_id: str, shelf: Shelf, books: apsw.Connection) -> _Seen | None:
    """A user's bet in the books or in an archive."""
    with History(books, shelf).where(bet_id) as connection:
        bet = connection and queries.bet(connection, user_id, bet_id)
        if not connection or not bet:
            return None
        found = evidence.decision(connection, bet_id)
        if found is None or found.window is None:
            return _Seen(bet, found, [])
        archived = connection is not books
        return _Seen(bet, found, evidence.window_bars(connection, found.cell) if archived else None)


def _parameters(request: web.Request, known: AbstractSet[str] = frozenset()) -> dict[str, str]:
    """The query's parameters. Raises ProblemError `malformed` for one that is not `known` or
    there twice.
    """
    query = request.query
    for name in sorted(query.keys()):
        if name not in known:
            raise _malformed(f"Unknown query parameter: {name[:_SHOWN]}.")
        if len(query.getall(name)) > 1:
            raise _malformed(f"The query parameter {name} is there more than once.")
    return dict(query)


def _status(text: str | None) -> str | None:
    if text is not None and text not in queries.STATUSES:
        raise _malformed(f"status must be one of: {', '.join(queries.STATUSES)}.")
    return text


def _limit(text: str | None) -> int:
    if text is None:
        return queries.USUAL_PAGE
    if not _LIMIT.fullmatch(text) or int(text) > queries.LARGEST_PAGE:
        raise _malformed(f"limit must be a whole number from 1 to {queries.LARGEST_PAGE}.")
    return int(text)


def _place(text: str | None, form: CursorForm) -> Cursor | None:
    try:
        return None if text is None else form.read(text)
    except queries.BadCursorError:
        raise _malformed("cursor must be a next_cursor of this list.") from None


def _malformed(detail: str) -> ProblemError:
    return ProblemError(400, "malformed", detail)


def _entry_fields(entry: Entry) -> dict[str, Any]:
    return {
        "entry_id": entry.entry_id,
        "amount": entry.amount,
        "balance_after": entry.balance_after,
        "ref_type": entry.ref_type,
        "ref_id": entry.ref_id,
        "created_at": rfc3339_ms(entry.created_at),
    }


def _page(
    items: list[dict[str, Any]],
    next_cursor: Cursor | None,
    form: CursorForm,
    archived_before: int | None,
) -> web.Response:
    return _unstored(
        {
            "items": items,
            "next_cursor": form.write(next_cursor) if next_cursor else None,
            "archived_before": None if archived_before is None else rfc3339_ms(archived_before),
        }
    )


def _unstored(fields: object) -> web.Response:
    """An answer that nobody on the way may keep: it is personal, or old in a moment."""
    response = json_response(fields)
    response.headers["Cache-Control"] = "no-store"
    return response
