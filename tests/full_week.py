"""A settled week, written straight into the tables: what traders and the resolver would leave,
much faster than they could.
"""

import random
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

from tap_trading.archive.weeks import Week
from tap_trading.base.db import open_writer
from tap_trading.ledger import accounts
from tap_trading.ledger.accounts import HOUSE

WIDTH_S = 5
PRICE = 8_421_500
RATE_BPS = 20_000
#: Bets of a column, and of a batch of stakes.
CROWD, BATCH = 200, 50
_CREDIT = 10**9
_BARS = WIDTH_S * 10
_AT_ONCE = 20  # columns in a transaction

_BET = """
INSERT INTO bets (id, user_id, cell_id, amount, reward_rate_bps, status, placed_at, resolved_at,
                  payout_amount, idempotency_key, pricing, void_reason)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_ENTRY = """
INSERT INTO transaction_ledger (id, user_id, amount, balance_after, ref_type, ref_id, created_at)
VALUES (?, ?, ?, ?, ?, ?, ?)
"""
_PRICING = "INSERT INTO pricings VALUES (?, ?, 7e-05, 0.1, 300, 'none', 'none')"
_WINDOW = """
INSERT INTO settlements (start, width, bars, longest_gap, low, high, void, settled_at, released)
VALUES (?, ?, ?, 100, ?, ?, 0, ?, NULL)
"""
_BAR = "INSERT INTO bars VALUES (?1, ?2, ?2, ?2, ?2, NULL, NULL, 'none', '[]')"


class _Books:
    """Rows in the making, with what everybody has."""

    def __init__(self, balances: dict[str, int]) -> None:
        self.balances = balances
        self.bets: list[tuple[Any, ...]] = []
        self.entries: list[tuple[Any, ...]] = []
        self._number = count()

    def number(self, at: int) -> str:
        return f"{at:012x}{'0' * 10}{next(self._number):06x}"

    def move(self, kind: str, moves: list[tuple[str, str, int, str]], at: int) -> None:
        """Movements of (entry, user, cents, bet) as one journal entry."""
        for entry, user, amount, bet in moves:
            self.balances[user] += amount
            self.entries.append((entry, user, amount, self.balances[user], kind, bet, at))
        taken = -sum(amount for _, _, amount, _ in moves)
        self.balances[HOUSE] += taken
        journal = moves[0][0].removeprefix("led_").removesuffix("u")
        self.entries.append(
            (f"led_{journal}h", HOUSE, taken, self.balances[HOUSE], kind, f"batch_{journal}", at)
        )


def write_week(books: Path, prices: Path, week: Week, bets: int, users: int = 2500) -> None:
    """Add about so many bets of so many new users to a week; all are over when it ends."""
    chance = random.Random(week.number)
    with closing(open_writer(books)) as ledger, closing(open_writer(prices)) as bars:
        with ledger:
            for number in range(users):
                address = f"{week.name}-{number}"
                accounts.open_account(ledger, address, week.begins_at, _CREDIT)
        rows = _Books(dict(ledger.execute("SELECT id, balance FROM users")))
        everybody = [user for user in rows.balances if user != HOUSE]
        for piece in _pieces(list(_columns(week, bets // CROWD))):
            windows = []
            for start in piece:
                pricing = start * 1000 - 2 * WIDTH_S * 1000
                _column(rows, chance, everybody, start, pricing)
                windows.append((start, pricing))
            with ledger:
                ledger.executemany(_PRICING, [(pricing, PRICE) for _, pricing in windows])
                ledger.executemany(_BET, rows.bets)
                ledger.executemany(_ENTRY, rows.entries)
                ledger.executemany(
                    _WINDOW,
                    [
                        (start, WIDTH_S, _BARS, PRICE, PRICE, (start + WIDTH_S) * 1000)
                        for start, _ in windows
                    ],
                )
            rows.bets.clear()
            rows.entries.clear()
            with bars:
                stamps = {
                    t
                    for start, pricing in windows
                    for t in (*range(start * 1000, (start + WIDTH_S) * 1000, 100), pricing)
                }
                bars.executemany(_BAR, [(t, PRICE) for t in sorted(stamps)])
        with ledger:
            ledger.executemany(
                "UPDATE users SET balance = ? WHERE id = ?",
                [(balance, user) for user, balance in rows.balances.items()],
            )


def _columns(week: Week, wanted: int) -> Iterator[int]:
    """Starts of columns all over the week, Unix s."""
    begin, length = week.begins_at // 1000 + 3600, 7 * 24 * 3600 - 7200
    step = max(length // max(wanted, 1) // WIDTH_S, 4) * WIDTH_S
    for number in range(wanted):
        yield begin + number * step


def _pieces(columns: list[int]) -> Iterator[list[int]]:
    for first in range(0, len(columns), _AT_ONCE):
        yield columns[first : first + _AT_ONCE]


def _column(
    rows: _Books, chance: random.Random, users: list[str], start: int, pricing: int
) -> None:
    """CROWD bets on a column, and what became of them."""
    placed, resolved = pricing - 400, (start + WIDTH_S) * 1000 + 100
    first = chance.randrange(len(users))
    stakes, paid, returned = [], [], []
    for number in range(CROWD):
        user = users[(first + number) % len(users)]
        amount, drawn = 100 * chance.randint(1, 9), chance.random()
        status = "won" if drawn < 0.25 else "void" if drawn < 0.3 else "lost"
        name, low = rows.number(placed), PRICE - 1000 * (number % 8)
        payout = {"won": amount * RATE_BPS // 10_000, "lost": 0}.get(status)
        reason = "feed_outage" if status == "void" else None
        rows.bets.append(
            (
                *(f"bet_{name}", user, f"btc-usd:{start}:{WIDTH_S}:{low}:{low + 1000}", amount),
                *(RATE_BPS, status, placed, resolved, payout, name, pricing, reason),
            )
        )
        stakes.append((f"led_{name}u", user, -amount, f"bet_{name}"))
        if status == "won":
            paid.append((f"led_{rows.number(resolved)}u", user, payout or 0, f"bet_{name}"))
        elif status == "void":
            returned.append((f"led_{rows.number(resolved)}u", user, amount, f"bet_{name}"))
    for number in range(0, CROWD, BATCH):
        rows.move("BET", stakes[number : number + BATCH], placed)
    if paid:
        rows.move("PAYOUT", paid, resolved)
    if returned:
        rows.move("REFUND", returned, resolved)
