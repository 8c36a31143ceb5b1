"""`tap verify` and the evidence: what was decided follows from what is stored, or is named."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.integration.conftest import Tap

from market_days import (
    BEGIN,
    FAR,
    NEAR,
    PRICE,
    SPEED_BUMP_MS,
    START,
    Tape,
    Traders,
    finish,
    resolving,
)
from settled_market import settled_market
from tap_trading.base.db import open_reader, open_writer
from tap_trading.cli import verify
from tap_trading.game.cell import Cell
from tap_trading.ledger import queries
from tap_trading.settlement import evidence, verification

#: The time in which all bets of these tests are placed.
ALL = ("--from", "2025-11-24T15:59:00Z", "--to", "2025-11-24T16:10:00Z")
OUTAGE = Cell(START + 10, 5, PRICE - 500, PRICE + 500)
LATER = Cell(START + 300, 5, PRICE - 500, PRICE + 500)


@pytest.fixture
async def bets(
    database: Path, prices: Path, tape: Tape, traders: Traders, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """A bet of each fate, by its name."""
    monkeypatch.setenv("DB_PATH", str(database))
    monkeypatch.setenv("PRICES_DB_PATH", str(prices))
    edge = Cell(START, 5, PRICE + 1000, PRICE + 2000)
    placed = {
        "won": traders.bet(NEAR, BEGIN + 4_000),
        "lost": traders.bet(FAR, BEGIN + 4_050),
        "outage": traders.bet(OUTAGE, BEGIN + 4_100),
        "unpriced": traders.bet(LATER, BEGIN + 32_000),
        "too low": traders.bet(edge, BEGIN + 4_000, min_rate=10**6),
        "too sure": traders.bet(Cell(START, 5, PRICE - 10**6, PRICE + 10**6), BEGIN + 4_000),
        "confirmed": traders.bet(Cell(START + 400, 5, NEAR.low, NEAR.high), BEGIN + 4_000),
        "refused": traders.bet(NEAR, BEGIN + 4_000, user=1, amount=10**8),
    }
    tape.play(PRICE + 100 * (number % 3) for number in range(210))
    tape.stay((START + 10) * 1000)
    tape.miss((START + 300) * 1000)
    tape.stay((START + 310) * 1000)
    placed["pending"] = traders.bet(Cell(START + 400, 5, NEAR.low - 1, NEAR.high), tape.now - 100)
    async with resolving(database, prices) as resolver:
        await finish(resolver)
    return placed


@pytest.fixture
async def long_market(database: Path, prices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty minutes with a dozen outages, settled."""
    monkeypatch.setenv("DB_PATH", str(database))
    monkeypatch.setenv("PRICES_DB_PATH", str(prices))
    await settled_market(database, prices, 1200, often=0.05)


def test_each_bet_in_words(bets: dict[str, str], run_tap: Tap) -> None:
    said: dict[str, str] = {}
    for name, bet_id in bets.items():
        code, out, err = run_tap("verify", bet_id)
        assert (code, err) == (0, ""), (name, out)
        assert "WRONG" not in out
        said[name] = out
    assert "is won: 1000 cents" in said["won"]
    assert "was in $84,210.00 to $84,220.00 in the bar of" in said["won"]
    assert "was never in $84,245.00 to $84,255.00, so it lost" in said["lost"]
    assert "without a price for too long, so the column is void" in said["outage"]
    assert "no usable price before its window began" in said["unpriced"]
    assert "below the least that was asked for; so it is void" in said["too low"]
    assert "its chance has left the range that is offered" in said["too sure"]
    assert "it has no result yet" in said["confirmed"]
    assert "has no rate yet" in said["pending"]
    assert "The balance did not cover the stake; nothing was decided" in said["refused"]


def test_all_bets_give_the_same_bytes(bets: dict[str, str], run_tap: Tap) -> None:
    code, out, _ = run_tap("verify", *ALL)
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == f"{len(bets)} bets, 0 of them wrong"
    assert lines[1].split() == ["stored", lines[2].split()[1]]


@pytest.mark.damaged_books
@pytest.mark.parametrize("at_once", [1, 2, 1000])
def test_it_does_not_matter_how_many_are_verified_at_once(
    at_once: int,
    bets: dict[str, str],
    database: Path,
    run_tap: Tap,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection = open_writer(database)
    connection.execute("UPDATE bets SET payout_amount = 1 WHERE status = 'lost'")
    connection.execute("UPDATE bets SET reward_rate_bps = 1 WHERE status = 'confirmed'")
    connection.close()
    expected = run_tap("verify", *ALL)
    assert f"{len(bets)} bets, 2 of them wrong" in expected[1]
    monkeypatch.setattr(verify, "_AT_ONCE", at_once)
    assert run_tap("verify", *ALL) == expected


@pytest.mark.damaged_books
def test_a_bet_on_no_cell_ends_it_once_those_before_it_are_named(
    bets: dict[str, str], database: Path, run_tap: Tap
) -> None:
    connection = open_writer(database)
    for change, name in (
        ("payout_amount = 1", "won"),
        ("cell_id = 'btc-usd:here'", "lost"),
        ("payout_amount = 1", "outage"),
    ):
        connection.execute(f"UPDATE bets SET {change} WHERE id = ?", (bets[name],))
    connection.close()
    refused = (1, f"tap: the bet {bets['lost']} is on no cell: btc-usd:here\n")
    code, out, err = run_tap("verify", *ALL)
    assert (code, err) == refused
    [line] = out.splitlines()
    assert line.startswith(f'WRONG ["{bets["won"]}"')
    code, out, err = run_tap("verify", bets["lost"])
    assert ((code, err), out) == (refused, "")


@pytest.mark.damaged_books
@pytest.mark.usefixtures("long_market")
def test_a_market_with_outages_is_replayed_to_the_same_bytes(
    database: Path, prices: Path, run_tap: Tap
) -> None:
    day = ("--from", "2025-11-24", "--to", "2025-11-25")
    books, bars = open_reader(database), open_reader(prices)
    ids = list(queries.placed_between(books, BEGIN, BEGIN + 86_400_000))
    found = [each for each in evidence.decisions(books, ids) if each]
    cases = evidence.cases(bars, found, SPEED_BUMP_MS)
    books.close()
    bars.close()
    assert {each.void_reason or each.status for each in found} == {
        *("won", "lost", "feed_outage", "no_price", "not_offered", "rate_below_minimum"),
    }
    results = verification.replay(cases)
    assert results == [verification.stored(each) for each in found]
    assert results[::10] == [verification.replay([case])[0] for case in cases[::10]]

    code, out, _ = run_tap("verify", *day)
    count, stored, computed = out.splitlines()
    assert (code, count) == (0, f"{len(ids)} bets, 0 of them wrong")
    assert stored.split()[1] == computed.split()[1]

    connection = open_writer(database)
    connection.execute("UPDATE bets SET payout_amount = payout_amount + 1 WHERE status = 'won'")
    connection.close()
    won = Counter(result.status for result in results)["won"]
    code, out, _ = run_tap("verify", *day)
    *named, count, damaged, recomputed = out.splitlines()
    assert (code, count) == (1, f"{len(ids)} bets, {won} of them wrong")
    assert len(named) == 20 < won
    assert damaged != stored
    assert recomputed == computed


@pytest.mark.damaged_books
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("won", "UPDATE bets SET payout_amount = payout_amount + 1"),
        ("won", "UPDATE bets SET reward_rate_bps = reward_rate_bps + 1"),
        ("won", "UPDATE bets SET status = 'lost', payout_amount = 0"),
        ("lost", "UPDATE bets SET status = 'won', payout_amount = 5000"),
        ("outage", "UPDATE bets SET status = 'lost', payout_amount = 0"),
        ("won", "UPDATE bets SET status = 'void', void_reason = 'feed_outage'"),
        ("too low", "UPDATE bets SET min_reward_rate_bps = NULL"),
        ("confirmed", "UPDATE bets SET reward_rate_bps = reward_rate_bps - 1"),
    ],
)
def test_a_changed_bet_is_found(
    name: str, change: str, bets: dict[str, str], database: Path, run_tap: Tap
) -> None:
    connection = open_writer(database)
    connection.execute(f"{change} WHERE id = ?", (bets[name],))
    connection.close()
    code, out, _ = run_tap("verify", bets[name])
    assert (code, "WRONG" in out) == (1, True)
    code, out, _ = run_tap("verify", *ALL)
    assert code == 1
    assert f'WRONG ["{bets[name]}"' in out
    assert "1 of them wrong" in out


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("won", f"UPDATE bars SET close = close + 50, high = high + 50 WHERE t = {BEGIN + 4300}"),
        ("won", f"UPDATE bars SET sigma = sigma * 1.0000001 WHERE t = {BEGIN + 4300}"),
        ("won", f"UPDATE bars SET estimate = '[1,2,3,4,5,6,7,8,9]' WHERE t = {BEGIN + 4200}"),
        ("won", f"DELETE FROM bars WHERE t = {BEGIN + 4300}"),
        ("lost", f"UPDATE bars SET high = 9000000 WHERE t = {START * 1000 + 4900}"),
        ("lost", f"DELETE FROM bars WHERE t BETWEEN {START * 1000} AND {START * 1000 + 2000}"),
    ],
)
def test_changed_bars_are_found(
    name: str, change: str, bets: dict[str, str], prices: Path, run_tap: Tap
) -> None:
    connection = open_writer(prices)
    triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
    for (trigger,) in triggers.fetchall():
        connection.execute(f"DROP TRIGGER {trigger}")
    connection.execute(change)
    assert connection.changes()
    connection.close()
    code, out, _ = run_tap("verify", bets[name])
    # Only what counts is compared: the estimate stored beside a bar is what follows from the
    # bar before it, whatever was written.
    assert code == (0 if "sigma" in change else 1), out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "verify one BET_ID, or all bets --from a time --to another"),
        (("--from", "2025-11-24"), "verify one BET_ID"),
        (("bet_x", *ALL), "verify one BET_ID"),
        (("bet_x",), "there is no bet with the id bet_x"),
        (("--from", "yesterday", "--to", "2025-11-24"), "is not a time such as"),
        (("--from", "2025-13-24", "--to", "2025-11-24"), "month must be in 1..12"),
    ],
)
def test_wrong_words(words: tuple[str, ...], said: str, bets: dict[str, str], run_tap: Tap) -> None:
    code, _, err = run_tap("verify", *words)
    assert code in (1, 2)
    assert said in err


def test_the_evidence_is_what_it_was_decided_by(
    bets: dict[str, str], database: Path, prices: Path
) -> None:
    def shown(name: str) -> dict[str, Any]:
        books, bars = open_reader(database), open_reader(prices)
        found = evidence.decision(books, bets[name])
        assert found
        fields = evidence.shown(found, evidence.window_bars(bars, found.cell))
        books.close()
        bars.close()
        return fields

    won = shown("won")
    assert won["void_reason"] is None
    assert won["rate"]["bar"] == BEGIN + 4_300
    assert won["rate"]["lead_ms"] == START * 1000 - BEGIN - 4_400
    assert won["result"] == {
        "bars": 50,
        "longest_gap_ms": 0,
        "low": PRICE,
        "high": PRICE + 200,
    }
    assert [bar["t"] for bar in won["bars"]] == list(range(START * 1000, START * 1000 + 5000, 100))
    assert shown("confirmed")["bars"] == []
    assert shown("confirmed")["result"] is None
    assert shown("pending")["rate"] is None
    assert shown("outage")["void_reason"] == "feed_outage"
    assert shown("outage")["result"]["longest_gap_ms"] == 5000
    assert shown("too low")["min_reward_rate"] == "100.0000"
