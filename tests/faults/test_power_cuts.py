"""Power cuts: whatever a disk may have kept, every acknowledged bet is there and the books
are whole.

Real batches are written through a VFS that records every write, and the record is cut off at
many places, each time with another part of what was not synced yet (see vfs.py).
"""

import asyncio
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import apsw
import pytest
from tests.faults.vfs import Disk, Recorder, Sync

from tap_trading.base import db
from tap_trading.base.db import DatabaseError, WriterLock, open_reader, open_writer
from tap_trading.ledger import accounts, migrations
from tap_trading.ledger.audit import audit
from tap_trading.ledger.batcher import Batcher
from tap_trading.ledger.bets import BetBooks
from tap_trading.ledger.ids import new_id
from tap_trading.ledger.placing import BetRequest, Limits, Outcome, Placed, Refusal

NOW = 1_764_000_000_000
CREDIT = 20_000
LIMITS = Limits(user=10**9, cell=10**9, column=10**9)
OFF, NORMAL = 0, 1  # PRAGMA synchronous

#: Pages in the WAL that make a commit checkpoint: after nearly each, now and then, hardly ever.
CHECKPOINTS = (4, 60, 1000)
LIVES = 3  # of the service, each ended properly: the last to close removes the WAL
CROWDS = 8  # of bets in each life
STATES = 150  # looked at after each campaign


@dataclass
class Promised:
    """What was acknowledged, each with the length of the record at that moment."""

    bets: list[tuple[int, BetRequest, Outcome]] = field(default_factory=list)
    deposits: list[tuple[int, str]] = field(default_factory=list)
    #: How many bets there were after each batch.
    sizes: set[int] = field(default_factory=lambda: {0})
    #: The ids of all bets in the order of their batches.
    bet_ids: list[str] = field(default_factory=list)


class Traders:
    """Users who bet, pay in and retry, on a site that lives and ends several times."""

    def __init__(
        self, path: Path, recorder: Recorder, chance: random.Random, checkpoint_pages: int
    ) -> None:
        self.promised = Promised()
        self._path = path
        self._checkpoint_pages = checkpoint_pages
        self._recorder = recorder
        self._chance = chance
        self._books = BetBooks(LIMITS)
        self._users: list[str] = []
        self._asked: list[BetRequest] = []

    async def trade(self) -> None:
        """Everything that is recorded."""
        for life in range(LIVES):
            batcher = Batcher(self._path, self._place, checkpoint_pages=self._checkpoint_pages)
            await batcher.open()
            if life == 0:
                await asyncio.gather(*(self._open_account(batcher, n) for n in range(8)))
            for _ in range(CROWDS):
                await self._crowd(batcher)
            await batcher.close()

    def _place(
        self, connection: apsw.Connection, requests: Sequence[BetRequest]
    ) -> Sequence[Outcome]:
        outcomes = self._books.place(connection, requests)
        self.promised.sizes.add(connection.execute("SELECT count(*) FROM bets").get)
        return outcomes

    async def _open_account(self, batcher: Batcher[BetRequest, Outcome], number: int) -> None:
        account = await batcher.run(
            lambda connection: accounts.open_account(connection, f"w{number}", NOW, CREDIT)
        )
        self._users.append(account.user_id)
        self._paid_in(f"practice_{account.user_id}")

    async def _crowd(self, batcher: Batcher[BetRequest, Outcome]) -> None:
        """Bets and deposits at once, while somebody reads and somebody else writes."""
        reader = open_reader(self._path)
        if self._chance.random() < 0.3:
            reader.execute("BEGIN; SELECT count(*) FROM bets").fetchall()  # a reader that stays
        deposits = [self._pay_in(batcher) for _ in range(self._chance.choice((0, 0, 1, 3)))]
        await asyncio.gather(self._bets(batcher), *deposits)
        if self._chance.random() < 0.3:
            await asyncio.to_thread(self._pay_in_elsewhere)
        reader.close()

    async def _bets(self, batcher: Batcher[BetRequest, Outcome]) -> None:
        waiting = self._chance.randint(1, 60)
        answered = asyncio.Event()

        def promise(request: BetRequest) -> Callable[[Outcome | Exception], None]:
            def reply(outcome: Outcome | Exception) -> None:
                nonlocal waiting
                assert not isinstance(outcome, Exception), outcome
                if isinstance(outcome, Placed) or outcome is Refusal.INSUFFICIENT_FUNDS:
                    self.promised.bets.append((len(self._recorder.steps), request, outcome))
                waiting -= 1
                if not waiting:
                    answered.set()

            return reply

        for _ in range(waiting):
            request = self._request()
            batcher.submit(lambda request=request: request, promise(request))
        await answered.wait()

    def _request(self) -> BetRequest:
        """A bet, or one that was asked for before."""
        if self._asked and self._chance.random() < 0.1:
            return self._chance.choice(self._asked)
        number = len(self._asked)
        start = NOW // 1000 + 5 * self._chance.randrange(20)
        low = 100 * self._chance.randrange(50)
        request = BetRequest(
            new_id("bet", NOW + number),
            self._chance.choice(self._users),
            f"key-{number}",
            f"btc-usd:{start}:5:{low}:{low + 100}",
            self._chance.choice((100, 500, 1000)),
            self._chance.choice((None, 15_000)),
            NOW + number,
        )
        self._asked.append(request)
        return request

    async def _pay_in(self, batcher: Batcher[BetRequest, Outcome]) -> None:
        reference = f"deposit-{self._chance.getrandbits(64)}"
        user_id = self._chance.choice(self._users)
        await batcher.run(lambda connection: _post(connection, user_id, reference))
        self._paid_in(reference)

    def _pay_in_elsewhere(self) -> None:
        """As the tool `tap` does it: on a connection of its own."""
        reference = f"tap-{self._chance.getrandbits(64)}"
        lock = WriterLock(self._path)
        with lock.held():
            connection = open_writer(self._path)
            connection.execute("BEGIN IMMEDIATE")
            _post(connection, self._chance.choice(self._users), reference)
            connection.execute("COMMIT")
            self._paid_in(reference)
            connection.close()
        lock.close()

    def _paid_in(self, reference: str) -> None:
        self.promised.deposits.append((len(self._recorder.steps), reference))


def _post(connection: apsw.Connection, user_id: str, reference: str) -> None:
    account = accounts.find(connection, user_id)
    assert account
    accounts.post(
        connection,
        account=account,
        amount=700,
        ref_type="DEPOSIT",
        ref_id=reference,
        metadata=None,
        now_ms=NOW,
    )


class Record(Protocol):
    """What the fixture `record` is."""

    def __call__(
        self, seed: int, checkpoint_pages: int, **pragmas: int
    ) -> tuple[Recorder, Promised]:
        """Trade; what was done to the disk meanwhile, and what was promised to the traders.

        The writers' pragmas are the application's own but for these.
        """


@contextmanager
def recording(folder: Path) -> Iterator[Recorder]:
    """All that is done to the databases of `folder` inside the block."""
    with pytest.MonkeyPatch.context() as patched:
        for pragmas in (db.WRITER_PRAGMAS, db.READER_PRAGMAS):
            patched.setitem(pragmas, "mmap_size", 0)  # the recorder's files cannot be mapped
        recorder = Recorder(folder)
        try:
            yield recorder
        finally:
            recorder.unregister()


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    def recorded(seed: int, checkpoint_pages: int, **pragmas: int) -> tuple[Recorder, Promised]:
        folder = tmp_path / "recorded"
        folder.mkdir()
        path = folder / "bets.db"
        migrations.migrate(path)
        pragmas["wal_autocheckpoint"] = checkpoint_pages  # of those who write beside the batcher
        with monkeypatch.context() as patched, recording(folder) as recorder:
            for name, value in pragmas.items():
                patched.setitem(db.WRITER_PRAGMAS, name, value)
            traders = Traders(path, recorder, random.Random(seed), checkpoint_pages)
            asyncio.run(traders.trade())
        traders.promised.bet_ids = bet_ids(path)
        return recorder, traders.promised

    return recorded


def bet_ids(path: Path) -> list[str]:
    """All bets, in the order in which they were written."""
    connection = open_reader(path)
    ids = [row[0] for row in connection.execute("SELECT id FROM bets ORDER BY rowid")]
    connection.close()
    return ids


def cuts(recorder: Recorder, promised: Promised, number: int, chance: random.Random) -> list[int]:
    """So many places to cut the record: some anywhere, most where it is tightest."""
    answers = [position for position, *_ in promised.bets + promised.deposits]
    syncs = [at for at, step in enumerate(recorder.steps) if isinstance(step, Sync)]
    tight = [places for places in (answers, syncs) if places]  # nothing is synced when that is off
    found = []
    for _ in range(number):
        anywhere = chance.randint(0, len(recorder.steps))
        found.append(chance.choice((anywhere, *map(chance.choice, tight))))
    return sorted(found)


def survey(
    recorder: Recorder, promised: Promised, folder: Path, number: int, seed: int
) -> Counter[str]:
    """In how many of so many crash states each kind of trouble was found."""
    chance = random.Random(seed)
    disk = Disk(recorder)
    found: Counter[str] = Counter()
    for position in cuts(recorder, promised, number, chance):
        disk.advance(position)
        put(disk.after_power_cut(chance), folder, chance)
        found["states"] += 1
        sentences = trouble(folder / "bets.db", promised, position)
        for sentence in sentences:
            print(f"cut at {position} of {len(recorder.steps)}: {sentence}")
        found.update({sentence.partition(":")[0] for sentence in sentences})
    return found


def put(state: dict[str, bytes], folder: Path, chance: random.Random) -> None:
    """Make `folder` hold these files and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in state.items():
        (folder / name).write_bytes(content)
    if chance.random() < 0.3:  # what may be left of the shared memory is worth nothing
        (folder / "bets.db-shm").write_bytes(chance.randbytes(32_768))


def trouble(path: Path, promised: Promised, position: int) -> list[str]:
    """What is wrong with the database after a power cut at this place of the record."""
    try:
        connection = open_writer(path)
    except DatabaseError as error:
        return [f"broken: {error}"]
    try:
        return _trouble(connection, promised, position)
    except (apsw.Error, DatabaseError) as error:
        return [f"broken: {error}"]
    finally:
        connection.close()


def _trouble(connection: apsw.Connection, promised: Promised, position: int) -> list[str]:
    found = []
    if (answer := connection.pragma("integrity_check")) != "ok":
        found.append(f"broken: {answer}")
    found += [f"wrong books: {sentence}" for sentence in audit(connection).findings]

    bet_ids = [row[0] for row in connection.execute("SELECT id FROM bets ORDER BY rowid")]
    if bet_ids != promised.bet_ids[: len(bet_ids)]:
        found.append("a later bet without an earlier one")
    if len(bet_ids) not in promised.sizes:
        found.append("half a batch")

    references = {row[0] for row in connection.execute("SELECT ref_id FROM transaction_ledger")}
    if any(at <= position and reference not in references for at, reference in promised.deposits):
        found.append("a lost deposit")

    # Clients retry all they ever asked; those who were answered get that answer again.
    connection.execute("BEGIN IMMEDIATE")
    outcomes = BetBooks(LIMITS).place(connection, [request for _, request, _ in promised.bets])
    connection.execute("COMMIT")
    for (at, _, promise), outcome in zip(promised.bets, outcomes, strict=True):
        if at <= position and outcome != promise:
            found.append("a lost bet")
    found += [f"wrong books after retries: {sentence}" for sentence in audit(connection).findings]
    return found


@pytest.mark.campaigns(3, 40)
def test_what_was_acknowledged_survives(
    campaign: int, record: Record, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    checkpoint = CHECKPOINTS[campaign % len(CHECKPOINTS)]
    recorder, promised = record(campaign, checkpoint)
    found = survey(recorder, promised, tmp_path / "state", STATES, campaign)
    assert found == {"states": STATES}
    measured(
        f"power cuts, checkpoints at {checkpoint} pages: nothing lost in {STATES} states from"
        f" {len(recorder.steps)} steps with {len(promised.bets)} answered bets"
    )


def test_commits_that_are_not_synced_would_be_found(
    record: Record, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    """The control: with synchronous=NORMAL the books stay whole, but bets are lost."""
    recorder, promised = record(1, CHECKPOINTS[-1], synchronous=NORMAL)
    found = survey(recorder, promised, tmp_path / "state", 80, 1)
    measured(f"power cuts with synchronous=NORMAL: {dict(found)}")
    assert found["a lost bet"] > 8
    assert set(found) <= {"states", "a lost bet", "a lost deposit"}


def test_books_that_are_torn_would_be_found(
    record: Record, tmp_path: Path, measured: Callable[[str], None]
) -> None:
    """The other control: with synchronous=OFF not even that holds."""
    recorder, promised = record(1, CHECKPOINTS[0], synchronous=OFF)
    found = survey(recorder, promised, tmp_path / "state", 40, 1)
    measured(f"power cuts with synchronous=OFF: {dict(found)}")
    assert found["broken"] > 4


def test_a_migration_that_the_power_cut_off_is_done_again(
    tmp_path: Path, long: bool, measured: Callable[[str], None]
) -> None:
    (tmp_path / "recorded").mkdir()
    with recording(tmp_path / "recorded") as recorder:
        migrations.migrate(tmp_path / "recorded" / "bets.db")
    disk, chance, folder = Disk(recorder), random.Random(1), tmp_path / "state"
    number = 2000 if long else 100
    for position in sorted(chance.randint(0, len(recorder.steps)) for _ in range(number)):
        disk.advance(position)
        put(disk.after_power_cut(chance), folder, chance)
        migrations.migrate(folder / "bets.db")
        connection = open_writer(folder / "bets.db")
        assert connection.pragma("integrity_check") == "ok"
        assert audit(connection).findings == ()
        connection.close()
    measured(f"power cuts during the first migration: {number} states, all migrated after it")
