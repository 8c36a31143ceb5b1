"""Which bets of a batch are placed: a pure decision over what the books say.

The bets of a batch are judged one after the other in the order of their arrival, each
seeing what those before it took: money, cells, limits and keys. Nothing here reads or
writes anything; `bets.py` brings the books in and writes the decision down.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

from tap_trading.ledger.journal import Account


class Refusal(StrEnum):
    """Why a bet is not placed, as the API's `code` says it."""

    UNKNOWN_CELL = "unknown_cell"
    CELL_CLOSED = "cell_closed"
    INVALID_AMOUNT = "invalid_amount"
    FEED_STALE = "feed_stale"
    STORAGE_UNAVAILABLE = "storage_unavailable"
    UNKNOWN_ACCOUNT = "unauthenticated"
    KEY_REUSED = "idempotency_key_reused"
    DUPLICATE_CELL = "duplicate_cell"
    LIMIT_EXCEEDED = "limit_exceeded"
    INSUFFICIENT_FUNDS = "insufficient_funds"


class BetRequest(NamedTuple):
    """What a trader asks for."""

    bet_id: str  # the bet's, should it be placed
    user_id: str
    idempotency_key: str
    cell_id: str
    amount: int  # cents
    min_reward_rate_bps: int | None
    placed_at: int  # Unix ms
    #: Why it cannot be placed at the moment of its arrival, whatever the books say. A retry
    #: of a bet that was placed in time gets its first answer all the same.
    refusal: Refusal | None = None
    #: What it pays at the rate that is offered when it arrives, cents.
    liability: int = 0

    @property
    def terms(self) -> tuple[str, int, int | None]:
        """What a retry has to repeat exactly."""
        return (self.cell_id, self.amount, self.min_reward_rate_bps)


class Placed(NamedTuple):
    """The answer to an accepted bet; a retry is given an equal one."""

    bet_id: str
    cell_id: str
    amount: int  # cents
    balance: int  # cents, after the stake was taken
    placed_at: int  # Unix ms


Outcome = Placed | Refusal


#: More than all limits that can be set.
_UNLIMITED = 10**15


class Limits(NamedTuple):
    """How much may be open at once, in cents."""

    user: int  # stakes of a user's open bets
    cell: int  # stakes on a cell, of all users
    column: int  # stakes on a column, of all users
    # What the same bets pay, should all of them win.
    user_liability: int = _UNLIMITED
    cell_liability: int = _UNLIMITED
    column_liability: int = _UNLIMITED


@dataclass(slots=True)
class Exposure:
    """What is open on a cell or a column, in cents."""

    stake: int = 0
    liability: int = 0


_NOTHING = Exposure()


class KnownBet(NamedTuple):
    """A bet that an idempotency key stands for."""

    terms: tuple[str, int, int | None]
    outcome: Outcome


@dataclass(slots=True)
class Books:
    """What has to be known to judge a batch; `place` keeps it up to date as it goes."""

    accounts: dict[str, Account] = field(default_factory=dict)
    #: By user and idempotency key.
    known: dict[tuple[str, str], KnownBet] = field(default_factory=dict)
    #: Cells that a user's bet occupies, by user and cell id.
    taken: set[tuple[str, str]] = field(default_factory=set)
    #: By scope; one that is missing has none.
    exposures: dict[str, Exposure] = field(default_factory=dict)


class Decision(NamedTuple):
    """One judged request: its answer, and whether there is anything to write."""

    request: BetRequest
    outcome: Outcome
    fresh: bool  # False for a retry and for a refusal that leaves no trace


@lru_cache(maxsize=4096)
def scopes(cell_id: str) -> tuple[str, str]:
    """The scopes of a cell and of its column, under which stakes are limited.

    The id without its symbol, and the first two numbers of it: both sort by time.
    """
    _, start, width, _ = cell_id.split(":", 3)
    return cell_id.split(":", 1)[1], f"{start}:{width}"


def decide(books: Books, requests: Sequence[BetRequest], limits: Limits) -> list[Decision]:
    """Judge the requests in their order; `books` are then as the batch leaves them."""
    return [_decide(books, request, limits) for request in requests]


def _decide(books: Books, request: BetRequest, limits: Limits) -> Decision:
    key = (request.user_id, request.idempotency_key)
    known = books.known.get(key)
    if known is not None:
        same = known.terms == request.terms
        return Decision(request, known.outcome if same else Refusal.KEY_REUSED, fresh=False)
    refusal = _refusal(books, request, limits)
    if refusal is not None and refusal is not Refusal.INSUFFICIENT_FUNDS:
        return Decision(request, refusal, fresh=False)
    outcome = refusal or _take(books, request)
    books.known[key] = KnownBet(request.terms, outcome)
    return Decision(request, outcome, fresh=True)


def _refusal(books: Books, request: BetRequest, limits: Limits) -> Refusal | None:
    if request.refusal is not None:
        return request.refusal
    account = books.accounts.get(request.user_id)
    if account is None:
        return Refusal.UNKNOWN_ACCOUNT
    if (request.user_id, request.cell_id) in books.taken:
        return Refusal.DUPLICATE_CELL
    cell, column = scopes(request.cell_id)
    if (
        account.open_stake + request.amount > limits.user
        or account.open_liability + request.liability > limits.user_liability
        or _too_exposed(books, request, cell, limits.cell, limits.cell_liability)
        or _too_exposed(books, request, column, limits.column, limits.column_liability)
    ):
        return Refusal.LIMIT_EXCEEDED
    if account.balance < request.amount:
        return Refusal.INSUFFICIENT_FUNDS
    return None


def _too_exposed(
    books: Books, request: BetRequest, scope: str, most_stake: int, most_liability: int
) -> bool:
    exposure = books.exposures.get(scope, _NOTHING)
    return (
        exposure.stake + request.amount > most_stake
        or exposure.liability + request.liability > most_liability
    )


def _take(books: Books, request: BetRequest) -> Placed:
    amount, liability = request.amount, request.liability
    account = books.accounts[request.user_id]
    account.balance -= amount
    account.open_stake += amount
    account.open_liability += liability
    books.taken.add((request.user_id, request.cell_id))
    for scope in scopes(request.cell_id):
        exposure = books.exposures.setdefault(scope, Exposure())
        exposure.stake += amount
        exposure.liability += liability
    return Placed(request.bet_id, request.cell_id, amount, account.balance, request.placed_at)
