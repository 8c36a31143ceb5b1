"""The resolver: rates, results and refunds, from stored bars, exactly once."""

import asyncio
from pathlib import Path

import pytest

from market_days import (
    BAR_MS,
    BEGIN,
    FAR,
    NEAR,
    PRICE,
    RATES,
    START,
    Clock,
    Tape,
    Traders,
    finish,
    resolving,
)
from tap_trading.base.db import open_reader, open_writer
from tap_trading.base.lease import FencedError
from tap_trading.game.cell import Cell
from tap_trading.ledger.audit import audit
from tap_trading.ledger.resolving import BooksChangedError


async def test_a_bet_is_confirmed_at_the_rate_after_the_speed_bump(
    database: Path, prices: Path, tape: Tape, traders: Traders
) -> None:
    placed = BEGIN + 2_050
    bet = traders.bet(NEAR, placed)
    tape.stay(placed + 250)  # the last bar starts before the bump is over
    async with resolving(database, prices) as resolver:
        await finish(resolver)
        assert traders.row(bet)["status"] == "pending"
        assert tape.now == BEGIN + 2_300
        tape.play([PRICE + 100, PRICE + 300])
        changed = await finish(resolver)
    row = traders.row(bet)
    # Placed at …050 and 300 ms later it is …350: the first bar from then on is that of …400.
    assert row["pricing"] == BEGIN + 2_400
    lead_s = (START * 1000 - row["pricing"] - BAR_MS) / 1000
    model, state = tape.model, tape.state
    chance = RATES.probability(
        PRICE + 300, model.sigma(state), model.spread(state), lead_s, 5, NEAR.low, NEAR.high
    )
    assert (row["status"], row["reward_rate_bps"]) == ("confirmed", int(RATES.rate_bps(chance)))
    [(user, shown)] = changed.bets
    assert (user, shown.bet_id, shown.status) == (traders.users[0], bet, "confirmed")
    assert (shown.reward_rate_bps, shown.payout_amount, shown.resolved_at) == (
        *(row["reward_rate_bps"], None),
        None,
    )
    assert changed.balances == {}
    assert traders.open_stake() == (1000, 3000)


async def test_won_and_lost(database: Path, prices: Path, tape: Tape, traders: Traders) -> None:
    before = traders.balance()
    near = traders.bet(NEAR, BEGIN)
    far = traders.bet(FAR, BEGIN, amount=2500)
    tape.stay((START + 5) * 1000 - BAR_MS)
    async with resolving(database, prices) as resolver:
        await finish(resolver)
        assert {traders.row(bet)["status"] for bet in (near, far)} == {"confirmed"}
        tape.stay((START + 5) * 1000)  # the last bar of the window
        changed = await finish(resolver)
    won, lost = traders.row(near), traders.row(far)
    paid = 1000 * won["reward_rate_bps"] // 10_000
    assert (won["status"], won["payout_amount"]) == ("won", paid)
    assert (lost["status"], lost["payout_amount"]) == ("lost", 0)
    assert traders.balance() == before - 3500 + paid
    assert traders.open_stake() == (0, 0)
    assert traders.count("exposures") == 0
    told = {bet.bet_id: (bet.status, bet.payout_amount) for _, bet in changed.bets}
    assert told == {near: ("won", paid), far: ("lost", 0)}
    assert changed.balances == {traders.users[0]: traders.balance()}


@pytest.mark.parametrize(
    ("high", "result"), [(FAR.low - 1, "lost"), (FAR.low, "won"), (FAR.high + 999, "won")]
)
async def test_a_touch_is_enough_and_less_is_not(
    high: int, result: str, database: Path, prices: Path, tape: Tape, traders: Traders
) -> None:
    bet = traders.bet(FAR, BEGIN)
    tape.stay(START * 1000 + 2_000)
    tape.play([high])
    tape.play([PRICE])
    tape.stay((START + 5) * 1000)
    async with resolving(database, prices) as resolver:
        await finish(resolver)
    assert traders.row(bet)["status"] == result


@pytest.mark.parametrize("moment", [START * 1000 - 2 * BAR_MS, (START + 5) * 1000])
async def test_a_touch_outside_the_window_is_none(
    moment: int, database: Path, prices: Path, tape: Tape, traders: Traders
) -> None:
    bet = traders.bet(FAR, BEGIN)
    tape.stay(moment)
    tape.play([FAR.low])
    tape.play([PRICE])
    tape.stay((START + 6) * 1000)
    async with resolving(database, prices) as resolver:
        await finish(resolver)
    assert traders.row(bet)["status"] == "lost"


async def test_the_first_bar_of_the_window_includes_the_close_before_it(
    database: Path, prices: Path, tape: Tape, traders: Traders
) -> None:
    bet = traders.bet(FAR, BEGIN)
    tape.stay(START * 1000 - BAR_MS)
    tape.play([FAR.low])
    tape.play([PRICE])
    tape.stay((START + 5) * 1000)
    async with resolving(database, prices) as resolver:
        await finish(resolver)
    assert traders.row(bet)["status"] == "won"


@pytest.mark.parametrize(("gap_ms", "status"), [(1000, "won"), (1100, "void")])
@pytest.mark.parametrize("where", ["inside", "at the start", "at the end"])
async def test_a_column_with_an_outage_is_void(
    where: str, gap_ms: int, status: str, database: Path, prices: Path, tape: Tape, traders: Traders
) -> None:
    before = traders.balance()
    bets = [traders.bet(NEAR, BEGIN), traders.bet(FAR, BEGIN)]
    other = traders.bet(Cell(START + 5, 5, NEAR.low, NEAR.high), BEGIN)
    start, end = START * 1000, (START + 5) * 1000
    begin = {"inside": start + 1500, "at the start": start, "at the end": end - gap_ms}[where]
    tape.stay(begin)
    tape.miss(begin + gap_ms)
    tape.stay(end + 5000)
    async with resolving(database, prices) as resolver:
        await finish(resolver)
    rows = [traders.row(bet) for bet in bets]
    assert rows[0]["status"] == status
    if status == "void":
        assert {row["void_reason"] for row in rows} == {"feed_outage"}
        assert traders.row(other)["status"] == "won"
        assert traders.balance() == before - 1000 + traders.row(other)["payout_amount"]
    assert traders.open_stake() == (0, 0)
    assert traders.count("exposures") == 0


async def test_an_outage_outside_the_window_voids_nothing(
    database: Path, prices: Path, tape: Tape, traders: Traders
) -> None:
    bet = traders.bet(NEAR, BEGIN)
    tape.stay(BEGIN + 5_000)
    tape.miss(START * 1000 + 900)
    tape.stay((START + 5) * 1000)
    async with resolving(database, prices) as resolver:
        await finish(resolver)
    assert traders.row(bet)["status"] == "won"


async def test_a_bet_without_a_price_before_its_window_is_void(
    database: Path, prices: Path, tape: Tape, traders: Traders
) -> None:
    before = traders.balance()
    bet = traders.bet(NEAR, BEGIN + 1_000)
    later = traders.bet(Cell(START + 5, 5, NEAR.low, NEAR.high), BEGIN + 1_000)
    tape.stay(BEGIN + 1_200)
    tape.miss(START * 1000 - BAR_MS)
    async with resolving(database, prices) as resolver:
        await finish(resolver)
        assert traders.row(bet)["status"] == "pending"
        tape.miss(START * 1000)
        await finish(resolver)
        assert (traders.row(bet)["status"], traders.row(bet)["void_reason"]) == ("void", "no_price")
        assert traders.row(later)["status"] == "pending"
        assert traders.balance() == before - 1000
        assert traders.open_stake() == (1000, 3000)
        tape.stay((START + 10) * 1000)
        await finish(resolver)
    row = traders.row(later)
    assert (row["status"], row["pricing"]) == ("won", START * 1000)


async def test_the_rate_must_not_be_below_what_the_trader_wants(
    database: Path, prices: Path, tape: Tape, traders: Traders
) -> None:
    cell = Cell(START, 5, PRICE + 1000, PRICE + 2000)
    tape.stay(BEGIN + 1_000)
    async with resolving(database, prices) as resolver:
        offered = traders.bet(cell, BEGIN)
        await finish(resolver)
        rate = traders.row(offered)["reward_rate_bps"]
        bets = [
            traders.bet(cell, BEGIN, user=user, min_rate=rate + more)
            for user, more in ((1, 0), (2, 1))
        ]
        await finish(resolver)
    rows = [traders.row(bet) for bet in bets]
    assert [row["status"] for row in rows] == ["confirmed", "void"]
    assert rows[1]["void_reason"] == "rate_below_minimum"
    assert rows[1]["pricing"] == rows[0]["pricing"]
    assert [traders.balance(user) for user in (1, 2)] == [10**7 - 1000, 10**7]


@pytest.mark.parametrize(
    "cell", [Cell(START, 5, PRICE - 10**6, PRICE + 10**6), Cell(START, 5, 10**7, 10**7 + 100)]
)
async def test_a_chance_that_left_the_offered_range_is_void(
    cell: Cell, database: Path, prices: Path, tape: Tape, traders: Traders
) -> None:
    bet = traders.bet(cell, BEGIN)
    tape.stay(BEGIN + 1_000)
    async with resolving(database, prices) as resolver:
        await finish(resolver)
    assert (traders.row(bet)["status"], traders.row(bet)["void_reason"]) == ("void", "not_offered")
    assert traders.count("exposures WHERE stake <> 0 OR liability <> 0") == 0


async def test_it_does_not_matter_when_it_is_decided(
    tmp_path: Path, database: Path, prices: Path, tape: Tape, traders: Traders
) -> None:
    bets = [
        traders.bet(cell, BEGIN + 900 * number, user=user)
        for number, cell in enumerate((NEAR, FAR, Cell(START + 5, 5, NEAR.low, NEAR.high)))
        for user in range(3)
    ]
    tape.stay((START + 20) * 1000)  # all of it before anyone resolves
    async with resolving(database, prices) as resolver:
        await finish(resolver)
    statuses = [traders.row(bet)["status"] for bet in bets]
    assert statuses == ["won"] * 3 + ["lost"] * 3 + ["won"] * 3


async def test_bets_that_moved_no_money_stay_as_they_are(
    database: Path, prices: Path, tape: Tape, traders: Traders
) -> None:
    connection = open_writer(database)
    connection.execute(
        "INSERT INTO bets (id, user_id, cell_id, amount, status, placed_at)"
        " VALUES ('old', ?, ?, 100, 'pending', ?)",
        (traders.users[0], FAR.cell_id, BEGIN),
    )
    connection.close()
    bet = traders.bet(NEAR, BEGIN)
    tape.stay((START + 5) * 1000)
    async with resolving(database, prices) as resolver:
        await finish(resolver)
    assert traders.row("old")["status"] == "pending"
    assert traders.row(bet)["status"] == "won"
    assert traders.count("exposures") == 0


async def test_of_two_resolvers_one_works(
    database: Path, prices: Path, tape: Tape, traders: Traders
) -> None:
    clock = Clock()
    bet = traders.bet(NEAR, BEGIN)
    tape.stay(BEGIN + 1_000)
    async with (
        resolving(database, prices, clock, "one") as one,
        resolving(database, prices, clock, "two") as two,
    ):
        assert await one.step()
        assert not await two.step()
        assert [await one.check(), await two.check()] == ["leading", "standing by"]
        clock.now += 1_400
        assert not await two.step()
        clock.now += 100  # nobody has heard of the first one for 1.5 s
        assert await two.step()
        with pytest.raises(FencedError):
            await finish(one)
        assert traders.row(bet)["status"] == "pending"
        await finish(two)
        assert traders.row(bet)["status"] == "confirmed"


async def test_a_lease_is_given_back_at_once(
    database: Path, prices: Path, tape: Tape, traders: Traders
) -> None:
    async with (
        resolving(database, prices, holder="one") as one,
        resolving(database, prices, holder="two") as two,
    ):
        await one.step()
        await one.release()
        assert await two.step()


async def test_two_that_both_believe_pay_once(
    database: Path, prices: Path, tape: Tape, traders: Traders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even without the lease, a bet that is not as it was read stops the transaction."""
    monkeypatch.setattr("tap_trading.base.lease.Lease.take", lambda *_: True)
    monkeypatch.setattr("tap_trading.base.lease.Lease.renew", lambda *_: None)
    bets = [traders.bet(NEAR, BEGIN, user=user) for user in range(3)]
    tape.stay((START + 5) * 1000)
    async with resolving(database, prices) as one, resolving(database, prices) as two:
        refused = 0
        for _ in range(30):
            steps = await asyncio.gather(one.step(), two.step(), return_exceptions=True)
            for resolver, step in zip((one, two), steps, strict=True):
                if isinstance(step, BaseException):
                    assert isinstance(step, BooksChangedError)
                    refused += 1
                    resolver._forget()
    assert refused
    paid = [traders.row(bet)["payout_amount"] for bet in bets]
    assert [traders.balance(user) for user in range(3)] == [10**7 - 1000 + each for each in paid]
    assert all(each > 1000 for each in paid)


def findings(database: Path) -> tuple[str, ...]:
    connection = open_reader(database)
    try:
        return audit(connection).findings
    finally:
        connection.close()


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bet a transaction, and a user."""
    for size in ("_FEWEST", "_FIRST", "_MOST", "_RELEASED_AT_ONCE"):
        monkeypatch.setattr(f"tap_trading.settlement.resolver.{size}", 1)


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("outage", [False, True])
async def test_every_step_may_be_the_last_one_of_a_process(
    outage: bool, database: Path, prices: Path, tape: Tape, traders: Traders
) -> None:
    for user in range(3):
        for cell in (NEAR, FAR):
            traders.bet(cell, BEGIN, user=user)
    tape.stay((START + 1) * 1000)
    if outage:
        tape.miss((START + 3) * 1000)
    tape.stay((START + 6) * 1000)
    clock, steps, open_stakes = Clock(), 0, []
    while traders.count("exposures"):
        clock.now += 2_000  # whoever held the lease is gone
        async with resolving(database, prices, clock, f"process {steps}") as resolver:
            assert await resolver.step()  # takes over
            await resolver.step()
        assert findings(database) == ()
        open_stakes.append(sum(traders.open_stake(user)[0] for user in range(3)))
        steps += 1
        assert steps < 30
    # Six rates, six results, three users, and the end of the column.
    assert steps == 16
    assert open_stakes == [6000] * 12 + [4000, 2000, 0, 0]
    statuses = {"void"} if outage else {"won", "lost"}
    assert {traders.row(bet)["status"] for bet in traders.bets()} == statuses


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("steps", range(1, 9))
async def test_a_bet_that_reaches_the_books_late_is_settled_too(
    steps: int, database: Path, prices: Path, tape: Tape, traders: Traders
) -> None:
    """Written long after it was taken: its column is being settled, released, or forgotten."""
    for user in range(2):
        traders.bet(NEAR, BEGIN, user=user)
    tape.stay((START + 6) * 1000)
    async with resolving(database, prices) as resolver:
        for _ in range(steps):
            await resolver.step()
        late = [traders.bet(FAR, BEGIN, user=user) for user in range(2)]
        while await resolver.step():
            assert findings(database) == ()
    assert {traders.row(bet)["status"] for bet in late} == {"lost"}
    assert [traders.open_stake(user) for user in range(3)] == [(0, 0)] * 3
    assert traders.count("exposures") == 0


async def test_no_price_database_is_said_and_survived(
    database: Path, prices: Path, tape: Tape, traders: Traders
) -> None:
    bet = traders.bet(NEAR, BEGIN)
    tape.stay(BEGIN + 1_000)
    async with resolving(database, prices) as resolver:
        running = asyncio.create_task(resolver.run())
        writer = open_writer(prices)
        writer.execute("ALTER TABLE progress RENAME TO gone")
        for _ in range(200):
            await asyncio.sleep(0.02)
            if traders.count("leases"):
                break
        await asyncio.sleep(0.2)
        with pytest.raises(RuntimeError, match="no such table: progress"):
            await resolver.check()
        writer.execute("ALTER TABLE gone RENAME TO progress")
        writer.close()
        for _ in range(200):
            await asyncio.sleep(0.05)
            if traders.row(bet)["status"] == "confirmed":
                break
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert traders.row(bet)["status"] == "confirmed"
