"""Users, bets, retries, deposits and crashes in any order: the database does what a few lines
of plain Python say.

The books are written by the real batcher on real SQLite. `Model` predicts every answer; after
each step it has to equal the database, and the audit has to be clean.
"""

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import apsw
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tap_trading.base.db import open_reader
from tap_trading.ledger import accounts, migrations
from tap_trading.ledger.accounts import (
    Account,
    DuplicateReferenceError,
    InsufficientFundsError,
)
from tap_trading.ledger.audit import audit
from tap_trading.ledger.batcher import Batcher, StorageUnavailableError
from tap_trading.ledger.bets import BetBooks
from tap_trading.ledger.ids import new_id
from tap_trading.ledger.placing import BetRequest, Limits, Outcome, Placed, Refusal

START = 1_764_000_000_000
LIMITS = Limits(user=2_000, cell=1_500, column=3_500)
CREDIT = 1_500
MEMORY = "/dev/shm"
STRANGER = "user_who_is_not_there"

#: Eight cells in two columns, which begin after any moment the clock may show.
CELLS = tuple(
    f"btc-usd:{START // 1000 + 86_400 + column}:5:{low}:{low + 100}"
    for column in (0, 5)
    for low in (1000, 1100, 1200, 1300)
)

amounts = st.sampled_from((100, 500, 1000))
rates = st.sampled_from((None, None, None, 10_582))


@dataclass
class User:
    """A user of the model."""

    balance: int = 0
    stakes: int = 0


@dataclass
class Model:
    """What the books should say, in plain Python and one bet after the other."""

    users: dict[str, User] = field(default_factory=dict)
    #: By user and key: what was asked, and the answer that a retry gets.
    answers: dict[tuple[str, str], tuple[tuple[object, ...], Outcome]] = field(default_factory=dict)
    bets: dict[str, tuple[str, str, int, str]] = field(default_factory=dict)
    moved: set[tuple[str, str]] = field(default_factory=set)

    def bet(self, request: BetRequest) -> Outcome:
        """The answer, by the rules of the game."""
        terms = (request.cell_id, request.amount, request.min_reward_rate_bps)
        key = (request.user_id, request.idempotency_key)
        if key in self.answers:
            asked, answer = self.answers[key]
            return answer if asked == terms else Refusal.KEY_REUSED
        if request.refusal:
            return request.refusal
        user = self.users.get(request.user_id)
        if user is None:
            return Refusal.UNKNOWN_ACCOUNT
        if self._stake(user=request.user_id, cell=request.cell_id):
            return Refusal.DUPLICATE_CELL
        column = request.cell_id.rsplit(":", 2)[0]
        if (
            self._stake(user=request.user_id) + request.amount > LIMITS.user
            or self._stake(cell=request.cell_id) + request.amount > LIMITS.cell
            or self._stake(column=column) + request.amount > LIMITS.column
        ):
            return Refusal.LIMIT_EXCEEDED
        outcome: Outcome = Refusal.INSUFFICIENT_FUNDS
        if user.balance >= request.amount:
            user.balance -= request.amount
            outcome = Placed(
                request.bet_id, request.cell_id, request.amount, user.balance, request.placed_at
            )
        status = "pending" if isinstance(outcome, Placed) else "insufficient_funds"
        self.bets[request.bet_id] = (request.user_id, request.cell_id, request.amount, status)
        self.answers[key] = (terms, outcome)
        return outcome

    def _stake(self, *, user: str = "", cell: str = "", column: str = "") -> int:
        return sum(
            amount
            for user_id, cell_id, amount, status in self.bets.values()
            if status == "pending"
            and user in ("", user_id)
            and cell in ("", cell_id)
            and cell_id.startswith(column)
        )

    def move(self, user_id: str, amount: int, kind: str, reference: str) -> type[Exception] | int:
        """The new balance, or what is raised instead."""
        if (kind, reference) in self.moved:
            return DuplicateReferenceError
        user = self.users[user_id]
        if user.balance + amount < 0:
            return InsufficientFundsError
        self.moved.add((kind, reference))
        user.balance += amount
        return user.balance


class Site:
    """A batcher on a database, with an event loop of its own so that steps can be plain."""

    def __init__(self) -> None:
        # In memory where there is such a place: nothing here is about the disk.
        memory = MEMORY if Path(MEMORY).is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="tap-machine-", dir=memory))
        self.path = self.folder / "0.db"
        self._copies = count(1)
        self._runner = asyncio.Runner()
        migrations.migrate(self.path)
        self.start()

    def start(self) -> None:
        """Open the books."""

        async def opened() -> Batcher[BetRequest, Outcome]:
            batcher = Batcher(self.path, BetBooks(LIMITS).place)
            await batcher.open()
            return batcher

        self._batcher = self._runner.run(opened())

    def together(
        self, requests: Sequence[BetRequest], work: Callable[[apsw.Connection], object]
    ) -> list[Any]:
        """The answers to `work` and to these bets, all in one batch; exceptions among them."""

        async def done() -> list[Any]:
            handled = [self._batcher.handle(request) for request in requests]
            return await asyncio.gather(self._batcher.run(work), *handled, return_exceptions=True)

        return self._runner.run(done())

    def bets(self, requests: Sequence[BetRequest]) -> list[Any]:
        """The answers to bets that share a batch."""
        return self.together(requests, lambda _: None)[1:]

    def run(self, work: Callable[[apsw.Connection], Any]) -> Any:
        """What `work` returns or raises."""
        return self._runner.run(self._batcher.run(work))

    def crash(self, requests: Sequence[BetRequest], *, after: bool) -> list[Any]:
        """Be killed while these bets are written, or right after, and go on with what the
        files hold at that moment. Returns the answers that nobody got any more.
        """
        copy = self.folder / f"{next(self._copies)}.db"

        def copied(_connection: object = None) -> None:
            for suffix in ("", "-wal"):
                original = Path(f"{self.path}{suffix}")
                if original.exists():
                    shutil.copyfile(original, f"{copy}{suffix}")

        answers = []
        if after:
            answers = self.bets(requests)
            copied()
        else:
            # Jobs of their own come before the bets of a batch; this one comes last.
            self._batcher._together, place = self._then(copied), self._batcher._together
            self.bets(requests)
            self._batcher._together = place
        self.stop()
        self.path = copy
        self.start()
        return answers

    def _then(self, do: Callable[[], None]) -> Callable[..., Any]:
        place = self._batcher._together

        def placed_and_done(connection: apsw.Connection, requests: Any) -> Any:
            outcomes = place(connection, requests)
            connection.cache_flush()  # what a large batch would have written already
            do()
            return outcomes

        return placed_and_done

    def stop(self) -> None:
        """End properly."""
        self._runner.run(self._batcher.close())

    def close(self) -> None:
        self.stop()
        self._runner.close()
        shutil.rmtree(self.folder)


class Trading(RuleBasedStateMachine):
    """Everything that may happen."""

    tally: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.site = Site()
        self.model = Model()
        self.now = START
        self.asked: list[BetRequest] = []
        self.users: list[str] = []
        self.versions: dict[str, tuple[int, int]] = {}  # balance and version, as last seen

    def teardown(self) -> None:
        self.site.close()

    def _bet(self, data: st.DataObject) -> BetRequest:
        """A new bet, a retry of an earlier one, or an earlier key for something else."""
        kind = data.draw(st.sampled_from(("new", "new", "new", "retry", "reuse", "refused")))
        if kind == "retry" and self.asked:
            earlier = data.draw(st.sampled_from(self.asked))
            # The retry is a request of its own, at a moment when the column may have closed.
            return earlier._replace(
                bet_id=new_id("bet", self.now),
                placed_at=self.now,
                refusal=data.draw(st.sampled_from((None, Refusal.CELL_CLOSED))),
            )
        key = f"key-{len(self.asked)}"
        user_id = data.draw(st.sampled_from((*self.users, STRANGER)))
        if kind == "reuse" and self.asked:
            earlier = data.draw(st.sampled_from(self.asked))
            key, user_id = earlier.idempotency_key, earlier.user_id
        refusal = Refusal.CELL_CLOSED if kind == "refused" else None
        request = BetRequest(
            new_id("bet", self.now),
            user_id,
            key,
            data.draw(st.sampled_from(CELLS)),
            data.draw(amounts),
            data.draw(rates),
            self.now,
            refusal,
        )
        self.asked.append(request)
        return request

    def _bets(self, data: st.DataObject) -> list[BetRequest]:
        return [self._bet(data) for _ in range(data.draw(st.integers(1, 6)))]

    def _expected(self, requests: list[BetRequest]) -> list[Outcome]:
        answers = [self.model.bet(request) for request in requests]
        for answer in answers:
            self.tally[answer.value if isinstance(answer, Refusal) else "placed"] += 1
        return answers

    @initialize(number=st.integers(1, 3))
    def begin(self, number: int) -> None:
        for _ in range(number):
            self.open_account()

    @rule()
    def open_account(self) -> None:
        address = f"wallet-{len(self.users)}"
        account = self.site.run(
            lambda connection: accounts.open_account(connection, address, self.now, CREDIT)
        )
        assert account.balance == CREDIT
        self.users.append(account.user_id)
        self.model.users[account.user_id] = User(CREDIT)

    @rule(data=st.data())
    def sign_in_again(self, data: st.DataObject) -> None:
        user_id = data.draw(st.sampled_from(self.users))
        address = f"wallet-{self.users.index(user_id)}"
        account = self.site.run(
            lambda connection: accounts.open_account(connection, address, self.now, CREDIT)
        )
        assert (account.user_id, account.balance) == (user_id, self.model.users[user_id].balance)

    @rule(data=st.data())
    def bets(self, data: st.DataObject) -> None:
        requests = self._bets(data)
        expected = self._expected(requests)
        assert self.site.bets(requests) == expected

    @rule(data=st.data())
    def one_bet_after_the_other(self, data: st.DataObject) -> None:
        for request in self._bets(data):
            expected = self._expected([request])
            assert self.site.bets([request]) == expected

    @rule(
        data=st.data(),
        amount=st.sampled_from((-1500, -700, -1, 1, 800)),
        reference=st.integers(0, 5),
    )
    def move(self, data: st.DataObject, amount: int, reference: int) -> None:
        user_id = data.draw(st.sampled_from(self.users))
        kind = "DEPOSIT" if amount > 0 else "WITHDRAWAL"
        expected = self.model.move(user_id, amount, kind, f"ref-{reference}")

        def work(connection: apsw.Connection) -> Account:
            account = accounts.find(connection, user_id)
            assert account
            return accounts.post(
                connection,
                account=account,
                amount=amount,
                ref_type=kind,
                ref_id=f"ref-{reference}",
                metadata=None,
                now_ms=self.now,
            )

        if isinstance(expected, int):
            assert self.site.run(work).balance == expected
        else:
            with pytest.raises(expected):
                self.site.run(work)

    @rule(data=st.data())
    def a_job_that_fails_beside_bets(self, data: st.DataObject) -> None:
        def work(connection: apsw.Connection) -> None:
            connection.execute("UPDATE users SET balance = balance + 1")
            raise ZeroDivisionError

        requests = self._bets(data)
        expected = self._expected(requests)
        failed, *outcomes = self.site.together(requests, work)
        assert isinstance(failed, ZeroDivisionError)
        assert outcomes == expected

    @rule(data=st.data())
    def the_disk_fails(self, data: st.DataObject) -> None:
        def work(connection: apsw.Connection) -> None:
            connection.execute("UPDATE users SET balance = balance + 1")
            raise apsw.IOError("the disk has failed")

        for answer in self.site.together(self._bets(data), work):
            assert isinstance(answer, StorageUnavailableError)

    @rule()
    def restarted(self) -> None:
        self.tally["restart"] += 1
        self.site.stop()
        self.site.start()

    @rule(data=st.data())
    def killed_before_the_commit(self, data: st.DataObject) -> None:
        self.tally["crash before the commit"] += 1
        self.site.crash(self._bets(data), after=False)

    @rule(data=st.data())
    def killed_after_the_commit(self, data: st.DataObject) -> None:
        requests = self._bets(data)
        expected = self._expected(requests)
        self.tally["crash after the commit"] += 1
        assert self.site.crash(requests, after=True) == expected

    @rule(step_s=st.sampled_from((1, 61, 3600, -1, -61, -3600)))
    def time_goes_by_or_steps_back(self, step_s: int) -> None:
        self.now = max(START - 40_000_000, min(START + 80_000_000, self.now + step_s * 1000))

    @invariant()
    def the_books_are_what_the_model_says(self) -> None:
        connection = open_reader(self.site.path)
        try:
            assert audit(connection).findings == ()
            users = {
                user_id: (balance, version)
                for user_id, balance, version in connection.execute(
                    "SELECT id, balance, version FROM users WHERE id <> 'house'"
                )
            }
            bets = {
                row[0]: row[1:]
                for row in connection.execute(
                    "SELECT id, user_id, cell_id, amount, status FROM bets"
                )
            }
        finally:
            connection.close()
        assert {user_id: user.balance for user_id, user in self.model.users.items()} == {
            user_id: balance for user_id, (balance, _) in users.items()
        }
        assert bets == self.model.bets
        for user_id, (balance, version) in self.versions.items():
            # Every change counts the version up, so that nobody writes over it unseen.
            assert users[user_id][1] >= version
            assert users[user_id] == (balance, version) or users[user_id][1] > version
        self.versions = users


def test_any_order_of_events_keeps_the_books(long: bool, measured: Callable[[str], None]) -> None:
    Trading.tally.clear()
    run_state_machine_as_test(
        Trading,
        settings=settings(
            max_examples=1500 if long else 80,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    measured(f"state machine: {dict(Trading.tally)}")
