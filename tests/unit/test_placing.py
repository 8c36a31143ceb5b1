"""The pure decision over a batch of bets."""

from hypothesis import given
from hypothesis import strategies as st

from tap_trading.ledger.journal import Account
from tap_trading.ledger.placing import (
    BetRequest,
    Books,
    Exposure,
    Limits,
    Outcome,
    Placed,
    Refusal,
    decide,
    scopes,
)

CELL = "btc-usd:1764000000:5:8421000:8422000"
OTHER = "btc-usd:1764000000:5:8422000:8423000"
LATER = "btc-usd:1764000005:5:8421000:8422000"
FREE = Limits(user=10**9, cell=10**9, column=10**9)


def request(
    number: int,
    *,
    user: str = "ada",
    key: str | None = None,
    cell: str = CELL,
    amount: int = 100,
    rate: int | None = None,
    refusal: Refusal | None = None,
    liability: int = 0,
) -> BetRequest:
    key = key or f"key-{number}"
    at = 1000 + number
    return BetRequest(f"bet_{number}", user, key, cell, amount, rate, at, refusal, liability)


def books(**balances: int) -> Books:
    return Books(accounts={user: Account(balance, 0) for user, balance in balances.items()})


def outcomes(found: Books, *requests: BetRequest, limits: Limits = FREE) -> list[Outcome]:
    return [decision.outcome for decision in decide(found, requests, limits)]


def test_a_bet_takes_its_stake() -> None:
    found = books(ada=250)
    assert outcomes(found, request(1)) == [Placed("bet_1", CELL, 100, 150, 1001)]
    assert found.accounts["ada"] == Account(150, 100)
    assert found.taken == {("ada", CELL)}
    assert list(found.exposures.values()) == [Exposure(100, 0)] * 2


def test_money_for_two_of_a_hundred() -> None:
    found = books(ada=250)
    cells = [f"btc-usd:1764000000:5:{low}:{low + 1}" for low in range(100)]
    answers = outcomes(found, *(request(i, cell=cell) for i, cell in enumerate(cells)))
    assert [isinstance(answer, Placed) for answer in answers[:2]] == [True, True]
    assert set(answers[2:]) == {Refusal.INSUFFICIENT_FUNDS}
    assert found.accounts["ada"] == Account(50, 200)


def test_one_bet_per_user_and_cell_also_within_a_batch() -> None:
    found = books(ada=1000, bob=1000)
    answers = outcomes(found, request(1), request(2), request(3, user="bob"))
    assert isinstance(answers[0], Placed)
    assert answers[1] is Refusal.DUPLICATE_CELL
    assert isinstance(answers[2], Placed)
    assert found.accounts["ada"].balance == 900


def test_a_retry_gets_the_first_answer_whatever_has_changed() -> None:
    found = books(ada=100)
    late = request(3, key="k", refusal=Refusal.CELL_CLOSED)
    decisions = decide(found, [request(1, key="k"), request(2, key="k"), late], FREE)
    assert [d.outcome for d in decisions] == [Placed("bet_1", CELL, 100, 0, 1001)] * 3
    assert [d.fresh for d in decisions] == [True, False, False]


def test_a_key_stands_for_one_request() -> None:
    found = books(ada=1000)
    first = request(1, key="k", rate=10_000)
    for other in (
        request(2, key="k", cell=OTHER, rate=10_000),
        request(2, key="k", amount=500, rate=10_000),
        request(2, key="k", rate=10_001),
        request(2, key="k"),
    ):
        assert outcomes(found, first, other)[1] is Refusal.KEY_REUSED
    assert isinstance(
        outcomes(books(ada=1000, bob=1000), first, request(2, user="bob", key="k"))[1], Placed
    )


def test_a_bet_without_money_is_remembered_and_occupies_nothing() -> None:
    found = books(ada=50)
    assert outcomes(found, request(1, key="k")) == [Refusal.INSUFFICIENT_FUNDS]
    found.accounts["ada"].balance = 500
    # The same request has its answer; a new one on the same cell is another matter.
    assert outcomes(found, request(2, key="k")) == [Refusal.INSUFFICIENT_FUNDS]
    assert isinstance(outcomes(found, request(3))[0], Placed)


def test_refusals_leave_no_trace() -> None:
    found = books(ada=1000)
    for refusal in (
        *(Refusal.CELL_CLOSED, Refusal.UNKNOWN_CELL),
        *(Refusal.FEED_STALE, Refusal.STORAGE_UNAVAILABLE),
    ):
        decision = decide(found, [request(1, cell="nonsense", refusal=refusal)], FREE)[0]
        assert decision.outcome is refusal
        assert not decision.fresh
    assert found == books(ada=1000)
    # So the key is free for the next attempt.
    assert isinstance(outcomes(found, request(1))[0], Placed)


def test_nobody_bets_without_an_account() -> None:
    assert outcomes(books(), request(1)) == [Refusal.UNKNOWN_ACCOUNT]


def test_limits() -> None:
    third = "btc-usd:1764000000:5:8423000:8424000"
    by_user = Limits(user=200, cell=10**9, column=10**9)
    answers = outcomes(
        books(ada=1000), request(1), request(2, cell=LATER), request(3, cell=OTHER), limits=by_user
    )
    assert answers[2] is Refusal.LIMIT_EXCEEDED
    by_cell = Limits(user=10**9, cell=150, column=10**9)
    answers = outcomes(
        books(ada=1000, bob=1000),
        request(1),
        request(2, user="bob"),
        request(3, cell=OTHER),
        limits=by_cell,
    )
    assert [isinstance(answer, Placed) for answer in answers] == [True, False, True]
    by_column = Limits(user=10**9, cell=10**9, column=200)
    answers = outcomes(
        books(ada=1000),
        request(1),
        request(2, cell=OTHER),
        request(3, cell=third),
        request(4, cell=LATER),
        limits=by_column,
    )
    assert [isinstance(answer, Placed) for answer in answers] == [True, True, False, True]


def test_limits_on_what_may_have_to_be_paid() -> None:
    def accepted(limits: Limits, *requests: BetRequest) -> list[bool]:
        found = outcomes(books(ada=1000, bob=1000), *requests, limits=limits)
        assert {answer for answer in found if not isinstance(answer, Placed)} <= {
            Refusal.LIMIT_EXCEEDED
        }
        return [isinstance(answer, Placed) for answer in found]

    first = request(1, liability=700)
    by_user = FREE._replace(user_liability=1000)
    assert accepted(
        by_user,
        first,
        request(2, cell=LATER, liability=301),
        request(3, cell=LATER, liability=300),
        request(4, user="bob", cell=LATER, liability=1000),
    ) == [True, False, True, True]
    by_cell = FREE._replace(cell_liability=1000)
    assert accepted(
        by_cell,
        first,
        request(2, user="bob", liability=301),
        request(3, user="bob", cell=OTHER, liability=1000),
        request(4, user="bob", liability=300),
    ) == [True, False, True, True]
    by_column = FREE._replace(column_liability=1000)
    assert accepted(
        by_column,
        first,
        request(2, user="bob", cell=OTHER, liability=301),
        request(3, user="bob", cell=LATER, liability=1000),
        request(4, user="bob", cell=OTHER, liability=300),
    ) == [True, False, True, True]


def test_scopes_sort_by_time() -> None:
    assert scopes(CELL) == ("1764000000:5:8421000:8422000", "1764000000:5")
    assert max(scopes(CELL)) < min(scopes(LATER))


REQUESTS = st.lists(
    st.builds(
        request,
        st.integers(0, 10**6),
        user=st.sampled_from(["ada", "bob", "eve"]),
        key=st.sampled_from(["a", "b", "c", "d", "e", "f"]),
        cell=st.sampled_from([CELL, OTHER, LATER]),
        amount=st.sampled_from([100, 500, 2500]),
        rate=st.sampled_from([None, 10_500]),
        refusal=st.sampled_from([None, None, None, Refusal.CELL_CLOSED]),
    ),
    max_size=40,
    unique_by=lambda r: r.bet_id,
)


@given(REQUESTS, st.integers(0, 4000), st.integers(0, 4000))
def test_a_batch_is_no_more_than_its_bets_one_by_one(
    requests: list[BetRequest], ada: int, bob: int
) -> None:
    limits = Limits(user=3000, cell=4000, column=6000)
    together, alone = books(ada=ada, bob=bob), books(ada=ada, bob=bob)
    at_once = outcomes(together, *requests, limits=limits)
    one_by_one = [outcomes(alone, r, limits=limits)[0] for r in requests]
    assert at_once == one_by_one
    assert together == alone


@given(REQUESTS, st.integers(0, 4000), st.integers(0, 4000))
def test_no_money_is_made_or_lost(requests: list[BetRequest], ada: int, bob: int) -> None:
    limits = Limits(user=3000, cell=4000, column=6000)
    found = books(ada=ada, bob=bob)
    decisions = decide(found, requests, limits)
    placed = [d.outcome for d in decisions if d.fresh and isinstance(d.outcome, Placed)]
    taken = sum(bet.amount for bet in placed)
    assert sum(a.balance for a in found.accounts.values()) == ada + bob - taken
    assert sum(a.open_stake for a in found.accounts.values()) == taken
    assert all(a.balance >= 0 and a.open_stake <= limits.user for a in found.accounts.values())
    assert len({bet.bet_id for bet in placed}) == len(placed)
    assert all(
        exposure.stake <= (limits.cell if scope.count(":") == 3 else limits.column)
        for scope, exposure in found.exposures.items()
    )
