"""`tap deposit`, `withdraw`, `adjust` and `show`: asked for, confirmed, written once."""

import asyncio
import json
import os
import pty
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest
from tests.conftest import process_environment, python
from tests.integration.conftest import Tap

from tap_trading.base.db import WriterLock, open_reader, open_writer
from tap_trading.cli import money
from tap_trading.ledger import accounts, migrations, statement
from tap_trading.ledger.accounts import Account
from tap_trading.ledger.audit import audit
from tap_trading.ledger.batcher import Batcher
from tap_trading.ledger.bets import BetBooks
from tap_trading.ledger.placing import BetRequest, Limits, Placed
from tap_trading.ledger.statement import Entry

NOW = 1_764_000_000_000
CREDIT = 100_000
WALLET = "So1anaWa11et"


#: A command's exit code, standard output and standard error.
@pytest.fixture
def database(database: Path) -> Iterator[Path]:
    """A database with one user, whose ledger is clean still when the test is over."""
    with closing(open_writer(database)) as connection:
        accounts.open_account(connection, WALLET, NOW, CREDIT)
    yield database
    with closing(open_reader(database)) as connection:
        report = audit(connection)
        assert report.clean, report.findings


@pytest.fixture
def tap(database: Path, run_tap: Tap, monkeypatch: pytest.MonkeyPatch) -> Tap:
    """`tap("deposit", …)` in this process, without a terminal."""
    monkeypatch.setenv("DB_PATH", str(database))
    monkeypatch.setenv("SUDO_USER", "olga")

    return run_tap


def account(database: Path, user: str = WALLET) -> Account:
    with closing(open_reader(database)) as connection:
        found = accounts.find(connection, user)
    assert found
    return found


def entries(database: Path, reference: str) -> list[Entry]:
    with closing(open_reader(database)) as connection:
        return statement.entries_of(connection, reference)


def reference_of(out: str) -> str:
    return out.splitlines()[-1].removeprefix("reference: ")


# -- what is written -------------------------------------------------------------------------


def test_a_deposit_is_shown_and_written_with_its_reason_and_operator(
    tap: Tap, database: Path
) -> None:
    code, out, err = tap("deposit", WALLET, "12.50", "--reason", "wire of 2 May", "--yes")
    assert (code, err) == (0, "")
    user = account(database)
    reference = reference_of(out)
    assert out.splitlines() == [
        "deposit    $12.50 (1250 cents)",
        f"user       {user.user_id}",
        f"address    {WALLET}",
        "balance    $1000.00 (100000 cents) -> $1012.50 (101250 cents)",
        "reason     wire of 2 May",
        "operator   olga",
        f"reference  {reference}",
        f"written: {user.user_id} has $1012.50 (101250 cents)",
        f"reference: {reference}",
    ]
    assert user.balance == CREDIT + 1250
    ours, house = entries(database, reference)
    assert (ours.user_id, ours.amount, ours.ref_type) == (user.user_id, 1250, "DEPOSIT")
    assert (house.user_id, house.amount) == ("house", -1250)
    assert json.loads(ours.metadata or "") == {"reason": "wire of 2 May", "operator": "olga"}


@pytest.mark.parametrize(
    ("words", "amount", "kind"),
    [
        (["withdraw", WALLET, "1000"], -CREDIT, "WITHDRAWAL"),
        (["adjust", WALLET, "-0.01"], -1, "ADJUSTMENT"),
        (["adjust", WALLET, "+2.5"], 250, "ADJUSTMENT"),
    ],
)
def test_other_movements(
    tap: Tap, database: Path, words: list[str], amount: int, kind: str
) -> None:
    user = account(database).user_id
    words[1] = user  # the id does as well as the address
    code, out, _ = tap(*words, "--reason", "r", "--operator", "Ida", "--yes")
    assert code == 0
    assert account(database).balance == CREDIT + amount
    ours, _ = entries(database, reference_of(out))
    assert (ours.amount, ours.ref_type) == (amount, kind)
    assert ours.details["operator"] == "Ida"


def test_without_sudo_the_operator_is_who_is_logged_in(
    tap: Tap, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SUDO_USER")
    monkeypatch.setenv("LOGNAME", "ingrid")
    _, out, _ = tap("deposit", WALLET, "1", "--reason", "r", "--yes")
    assert entries(database, reference_of(out))[0].details["operator"] == "ingrid"

    def nobody() -> str:
        raise OSError

    monkeypatch.setattr("getpass.getuser", nobody)
    code, _, err = tap("deposit", WALLET, "1", "--reason", "r", "--yes")
    assert code == 1
    assert err == "tap: nobody is logged in; say who does this with --operator\n"


# -- what is refused -------------------------------------------------------------------------


def test_without_a_terminal_nothing_is_written_unless_confirmed(tap: Tap, database: Path) -> None:
    before = account(database)
    code, out, err = tap("deposit", WALLET, "5", "--reason", "r")
    assert code == 1
    assert "$1000.00 (100000 cents) -> $1005.00 (100500 cents)" in out
    assert err == (
        "tap: there is no terminal to ask at, so nothing was written; confirm with --yes\n"
    )
    assert account(database) == before


def test_a_balance_never_goes_below_zero(tap: Tap, database: Path) -> None:
    before = account(database)
    for words in (["withdraw", WALLET, "1000.01"], ["adjust", WALLET, "-1000.01"]):
        code, _, err = tap(*words, "--reason", "r", "--yes")
        assert code == 1
        assert err == (
            f"tap: {before.user_id} has only $1000.00 (100000 cents); nothing was written\n"
        )
    assert account(database) == before


@pytest.mark.parametrize(
    ("user", "sentence"),
    [
        ("nobody", "there is no user with the id or address nobody"),
        ("house", "the house is the other side of every movement; name a user"),
    ],
)
def test_only_users_have_movements(tap: Tap, user: str, sentence: str) -> None:
    assert tap("deposit", user, "5", "--reason", "r", "--yes") == (1, "", f"tap: {sentence}\n")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["deposit", WALLET, "-5", "--reason", "r"], "has a sign"),
        (["deposit", WALLET, "5.005", "--reason", "r"], "two decimals at most"),
        (["adjust", WALLET, "0", "--reason", "r"], "is not from 0.01 to 10000000000"),
        (["deposit", WALLET, "5"], "--reason"),
        (["deposit", WALLET, "5", "--reason", " "], "not all of them blank"),
        (["deposit", WALLET, "5", "--reason", "a\nb"], "printable"),
        (["deposit", WALLET, "5", "--reason", "r" * 201], "1 to 200"),
        (["deposit", WALLET, "5", "--reason", "r", "--operator", ""], "printable"),
        (["deposit", WALLET, "5", "--reason", "r", "--reference", "a b"], "visible ASCII"),
        (["show"], "user|bet"),
        (["show", "cell", "x"], "invalid choice"),
    ],
)
def test_wrong_words_are_told_with_code_2(tap: Tap, words: list[str], complaint: str) -> None:
    code, out, err = tap(*words)
    assert (code, out) == (2, "")
    assert complaint in err


def test_a_database_that_cannot_be_used_is_said_so(
    tap: Tap, database: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ("deposit", WALLET, "5", "--reason", "r", "--yes")
    monkeypatch.setattr(money, "_LOCK_WAIT_S", 0.1)
    lock = WriterLock(database)
    with lock.held():
        code, _, err = tap(*words)
    lock.close()
    assert code == 1
    assert err.startswith("tap: another process has held ")
    old = tmp_path / "old.db"
    migrations.migrate(old, migrations.available()[:1])
    monkeypatch.setenv("DB_PATH", str(old))
    code, _, err = tap(*words)
    assert code == 1
    assert err.endswith("no such column: open_stake (is the schema up to date? tap migrate)\n")
    monkeypatch.setenv("DB_PATH", str(tmp_path / "no.db"))
    code, _, err = tap(*words)
    assert (code, "there is no database at" in err) == (1, True)


def test_a_write_that_fails_is_said_so_and_changes_nothing(
    tap: Tap, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = account(database)

    def full(path: Path) -> apsw.Connection:
        connection = open_writer(path)
        connection.pragma("max_page_count", 1)
        connection.execute(
            "CREATE TEMP TRIGGER t AFTER INSERT ON main.transaction_ledger"
            " BEGIN INSERT INTO write_probe VALUES (2, zeroblob(9)); END"
        )
        return connection

    monkeypatch.setattr(money, "open_writer", full)
    code, _, err = tap("deposit", WALLET, "5", "--reason", "r", "--yes")
    assert code == 1
    assert err.startswith(f"tap: {database}: ")
    assert err.endswith("; nothing was written\n")
    assert account(database) == before


# -- references ------------------------------------------------------------------------------


def test_a_reference_makes_a_movement_repeatable(tap: Tap, database: Path) -> None:
    words = ("deposit", WALLET, "5", "--reason", "wire", "--reference", "wire-17")
    assert tap(*words, "--yes")[0] == 0
    after = account(database)
    # Also by another operator, and without a terminal, since there is nothing to confirm.
    code, out, err = tap(*words, "--operator", "Ida")
    assert (code, err) == (0, "")
    done, reference = out.splitlines()
    assert done.startswith("done before, on 20")
    assert done.endswith("; nothing was written now")
    assert reference == "reference: wire-17"
    assert account(database) == after


@pytest.mark.parametrize(
    "words",
    [
        ["deposit", WALLET, "5.01", "--reason", "wire"],
        ["deposit", WALLET, "5", "--reason", "another wire"],
        ["deposit", "other wallet", "5", "--reason", "wire"],
        ["withdraw", WALLET, "5", "--reason", "wire"],
        ["adjust", WALLET, "5", "--reason", "wire"],
    ],
)
def test_a_reference_of_another_movement_is_refused(
    tap: Tap, database: Path, words: list[str]
) -> None:
    with closing(open_writer(database)) as connection:
        accounts.open_account(connection, "other wallet", NOW, CREDIT)
    tap("deposit", WALLET, "5", "--reason", "wire", "--reference", "wire-17", "--yes")
    after = account(database)
    code, out, err = tap(*words, "--reference", "wire-17", "--yes")
    assert (code, out) == (1, "")
    assert "tap: the reference wire-17 was used on 20" in err
    assert f"DEPOSIT of $5.00 (500 cents) to {after.user_id}, reason: wire; nothing was" in err
    assert account(database) == after
    assert account(database, "other wallet").balance == CREDIT


def test_a_practice_credit_is_no_reference_for_people(tap: Tap, database: Path) -> None:
    reference = f"practice_{account(database).user_id}"
    words = ("deposit", WALLET, "1000", "--reason", "again", "--reference", reference, "--yes")
    assert tap(*words)[0] == 1
    assert account(database).balance == CREDIT


# -- the balance changes between showing and writing -----------------------------------------


@pytest.fixture
def meanwhile(database: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Something that happens after the account was shown, as often as asked for."""

    def arrange(happens: Callable[[int], None], times: int) -> None:
        write = money._write
        done = 0

        def late(*args: object) -> Account:
            nonlocal done
            if done < times:
                done += 1
                happens(done)
            return write(*args)  # type: ignore[arg-type]  # whatever SQLite gave

        monkeypatch.setattr(money, "_write", late)

    return arrange


def change(database: Path, reference: str, amount: int = 7) -> None:
    with closing(open_writer(database)) as connection:
        seen = accounts.find(connection, WALLET)
        assert seen
        accounts.post(
            connection,
            account=seen,
            amount=amount,
            ref_type="DEPOSIT",
            ref_id=reference,
            metadata={"reason": "wire", "operator": "Ida"},
            now_ms=NOW,
        )


def test_with_yes_it_looks_again(tap: Tap, database: Path, meanwhile: Callable[..., None]) -> None:
    meanwhile(lambda number: change(database, f"other-{number}"), times=2)
    code, out, _ = tap("deposit", WALLET, "5", "--reason", "r", "--yes")
    assert code == 0
    assert out.count("somebody else was faster, so nothing was written; looking again") == 2
    assert "$1000.14 (100014 cents) -> $1005.14 (100514 cents)" in out
    assert account(database).balance == CREDIT + 500 + 14


def test_money_that_went_meanwhile_is_not_spent_again(
    tap: Tap, database: Path, meanwhile: Callable[..., None]
) -> None:
    meanwhile(lambda _: change(database, "other", -CREDIT), times=1)
    code, _, err = tap("withdraw", WALLET, "5", "--reason", "r", "--yes")
    assert code == 1
    assert "has only $0.00 (0 cents); nothing was written" in err


def test_the_same_reference_from_elsewhere_is_written_once(
    tap: Tap, database: Path, meanwhile: Callable[..., None]
) -> None:
    meanwhile(lambda _: change(database, "wire-17", 500), times=1)
    words = ("deposit", WALLET, "5", "--reason", "wire", "--reference", "wire-17", "--yes")
    code, out, _ = tap(*words)
    assert code == 0
    assert "done before" in out
    assert account(database).balance == CREDIT + 500


def test_an_account_that_never_rests_is_left_alone(
    tap: Tap, database: Path, meanwhile: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(money, "_ATTEMPTS", 3)
    meanwhile(lambda number: change(database, f"other-{number}"), times=3)
    code, _, err = tap("deposit", WALLET, "5", "--reason", "r", "--yes")
    assert code == 1
    assert err == (
        f"tap: {WALLET} was changed 3 times between reading and writing;"
        " nothing was written, try again\n"
    )
    assert account(database).balance == CREDIT + 3 * 7


# -- at a terminal ---------------------------------------------------------------------------


class Terminal:
    """`tap` at a terminal of its own."""

    def __init__(self, database: Path, *words: str) -> None:
        ours, theirs = pty.openpty()
        self._fd = ours
        self.said = ""
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *python("-m", "tap_trading.cli.main", *words)],
            env=process_environment({"DB_PATH": str(database), "SUDO_USER": "olga"}),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)

    def until(self, text: str, count: int = 1) -> None:
        """Read until the text has been said so many times."""
        deadline = time.monotonic() + 30
        while self.said.count(text) < count:
            assert time.monotonic() < deadline, self.said
            self._read()

    def type(self, keys: str) -> None:
        self._typed = keys
        os.write(self._fd, keys.encode())

    def end(self) -> int:
        """Wait for the end; the exit code."""
        deadline = time.monotonic() + 30
        while self._process.poll() is None:
            assert time.monotonic() < deadline, self.said
            # An interruption in the moment before the program reads is lost: as a person
            # would, press it again.
            if not self._read():
                self.type(self._typed)
        while self._read():
            pass
        os.close(self._fd)
        return self._process.returncode

    def _read(self) -> bool:
        """Read what is said within a second; whether there was anything."""
        if not select.select([self._fd], [], [], 1)[0]:
            return False
        try:
            self.said += os.read(self._fd, 4096).decode()
        except OSError:  # the other end is closed
            time.sleep(0.01)
            return self._process.poll() is None
        return True


QUESTION = "write this? [y/N] "


@pytest.mark.parametrize("answer", ["y\n", "Y\n", "yes\n"])
def test_a_yes_writes(database: Path, answer: str) -> None:
    terminal = Terminal(database, "deposit", WALLET, "5", "--reason", "r")
    terminal.until(QUESTION)
    assert "$1000.00 (100000 cents) -> $1005.00 (100500 cents)" in terminal.said
    assert account(database).balance == CREDIT
    terminal.type(answer)
    assert terminal.end() == 0
    assert account(database).balance == CREDIT + 500


@pytest.mark.parametrize("answer", ["n\n", "\n", "yesterday\n", "\x04", "\x03"])
def test_anything_else_does_not(database: Path, answer: str) -> None:
    """Also the end of the input (Ctrl-D) and an interruption (Ctrl-C)."""
    before = account(database)
    terminal = Terminal(database, "deposit", WALLET, "5", "--reason", "r")
    terminal.until(QUESTION)
    terminal.type(answer)
    assert terminal.end() == 1
    assert "not confirmed; nothing was written" in terminal.said
    assert "Traceback" not in terminal.said
    assert account(database) == before


def test_a_balance_that_changed_before_the_answer_is_asked_about_again(database: Path) -> None:
    terminal = Terminal(database, "withdraw", WALLET, "5", "--reason", "r")
    terminal.until(QUESTION)
    change(database, "other")
    terminal.type("y\n")
    terminal.until(QUESTION, count=2)
    assert "somebody else was faster, so nothing was written; looking again" in terminal.said
    assert "$1000.07 (100007 cents) -> $995.07 (99507 cents)" in terminal.said
    assert account(database).balance == CREDIT + 7
    terminal.type("y\n")
    assert terminal.end() == 0
    assert account(database).balance == CREDIT + 7 - 500


# -- many at once ----------------------------------------------------------------------------

DEPOSITS = """
import sys
from tap_trading.cli import main
for number in range(10):
    try:
        main.main(["deposit", sys.argv[1], "0.01", "--reason", "r", "--yes"])
    except SystemExit as ended:
        assert ended.code == 0, ended.code
"""


async def test_many_deposits_at_once_lose_nothing_while_the_api_writes(database: Path) -> None:
    batcher: Batcher[object, object] = Batcher(database, lambda connection, items: [])
    await batcher.open()
    stop = asyncio.Event()

    def gift(name: str) -> Callable[[apsw.Connection], None]:
        def work(connection: apsw.Connection) -> None:
            seen = accounts.find(connection, WALLET)
            assert seen
            accounts.post(
                connection,
                account=seen,
                amount=1,
                ref_type="DEPOSIT",
                ref_id=name,
                metadata=None,
                now_ms=NOW,
            )

        return work

    async def play(player: int) -> int:
        """As fast as the batcher takes it, so that the writer's lock is hardly ever free."""
        number = 0
        while not stop.is_set():
            await batcher.run(gift(f"{player}:{number}"))
            number += 1
            await asyncio.sleep(0.02)
        return number

    players = [asyncio.create_task(play(player)) for player in range(4)]
    processes = [
        await asyncio.create_subprocess_exec(
            *python("-c", DEPOSITS, WALLET),
            env=process_environment({"DB_PATH": str(database)}),
            stdout=subprocess.DEVNULL,
        )
        for _ in range(4)
    ]
    codes = await asyncio.gather(*(process.wait() for process in processes))
    stop.set()
    gifts = sum(await asyncio.gather(*players))
    await batcher.close()
    assert codes == [0, 0, 0, 0]
    assert gifts > 0
    after = account(database)
    assert after.balance == CREDIT + 4 * 10 + gifts
    assert after.version == 2 + 4 * 10 + gifts


# -- tap show --------------------------------------------------------------------------------


def test_show_user(tap: Tap, database: Path) -> None:
    user = account(database).user_id
    tap("withdraw", WALLET, "0.10", "--reason", "coffee", "--reference", "c1", "--yes")
    with closing(open_writer(database)) as connection:
        connection.executemany(
            "INSERT INTO bets (id, user_id, cell_id, amount, status, placed_at, idempotency_key)"
            " VALUES (?1, ?2, ?1, 100, 'insufficient_funds', 1, ?1)",
            [("bet_1", user), ("bet_2", user)],
        )
    for name in (user, WALLET):
        code, out, err = tap("show", "user", name)
        assert (code, err) == (0, "")
        lines = [line.split() for line in out.splitlines()]
        assert ["user", user] in lines
        assert ["address", WALLET] in lines
        assert ["balance", "$999.90", "(99990", "cents)"] in lines
        assert ["open", "stake", "$0.00", "(0", "cents)"] in lines
        assert ["version", "3"] in lines
        assert ["created", "2025-11-24T16:00:00.000Z"] in lines
        assert ["bets", "2", "insufficient_funds"] in lines
        assert "last 2 entries" in out
        assert "WITHDRAWAL  -$0.10 (-10 cents), then $999.90" in out
        assert "reason: coffee, operator: olga" in out


def test_show_the_house(tap: Tap) -> None:
    code, out, _ = tap("show", "user", "house")
    assert code == 0
    assert "-$1000.00 (-100000 cents)" in out


def test_show_bet(tap: Tap, database: Path) -> None:
    user = account(database).user_id
    cell_id = "btc-usd:1764000010:5:100:200"
    placing = BetBooks(Limits(10**6, 10**6, 10**6))
    with closing(open_writer(database)) as connection:
        answers = placing.place(
            connection,
            [
                BetRequest("bet_1", user, "key 1", cell_id, 500, 10_582, NOW),
                BetRequest("bet_2", user, "key 2", f"{cell_id}0", 2500, None, NOW),
                BetRequest("bet_3", user, "key 3", f"{cell_id}1", CREDIT, None, NOW),
            ],
        )
        assert isinstance(answers[0], Placed)
        columns = [row[1] for row in connection.execute("PRAGMA table_info(bets)")]
    change(database, "bet_1")  # a correction under the bet's id belongs to it
    code, out, err = tap("show", "bet", "bet_1")
    assert (code, err) == (0, "")
    bet, rest = out.split("\nentries\n")
    entries, house = rest.split("the house's side, with the rest of the batch\n")
    shown = dict(line.split(maxsplit=1) for line in bet.splitlines())
    assert list(shown) == columns
    assert shown["amount"] == "$5.00 (500 cents)"
    assert shown["placed_at"] == f"2025-11-24T16:00:00.000Z ({NOW})"
    assert shown["payout_amount"] == "-"
    assert shown["status"] == "pending"
    stake, *correction = [line for line in entries.splitlines() if "bet_1" in line]
    assert f"BET         -$5.00 (-500 cents), then $995.00  {user}  bet_1" in stake
    assert len(correction) == 2
    assert "BET         $30.00 (3000 cents), then -$970.00  house  batch_" in house
    assert "bets: 2" in house
    unpaid = tap("show", "bet", "bet_3")[1]
    assert "insufficient_funds" in unpaid
    assert unpaid.endswith("\nno entries\n")


def test_show_says_what_is_not_there(tap: Tap) -> None:
    assert tap("show", "user", "x") == (
        *(1, ""),
        "tap: there is no user with the id or address x\n",
    )
    assert tap("show", "bet", "x") == (1, "", "tap: there is no bet with the id x\n")
