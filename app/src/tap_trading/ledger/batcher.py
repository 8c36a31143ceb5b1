"""The one write path: jobs from many requests share a transaction and its fsync.

Jobs are collected on the event loop. One thread owns the writing connection: it runs a
batch inside one BEGIN IMMEDIATE … COMMIT, and only then are its jobs answered: an answer
means the commit is on disk. A job is either a function of its own, run in a savepoint so
that its failure undoes it alone, or an item that is handled together with all others of
its batch. The writer's lock is held per batch and per checkpoint; a checkpoint comes
after the answers of the batch that made the WAL long enough, so nobody waits for it twice.

How long a batch is collected follows the load: not at all while jobs come one by one;
for as long as they keep coming, up to a window, once they come in crowds; and never for
longer than until half of all clients are in it, so that the other half can be collected
while the first is written.
"""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter
from typing import Any, Generic, TypeVar, cast

import apsw
from prometheus_client import Counter, Gauge, Histogram

from tap_trading.base import logger
from tap_trading.base.db import DatabaseError, WriterLock, open_writer

T = TypeVar("T")
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

#: What a job does: reads and writes on the given connection, and returns its answer.
Work = Callable[[apsw.Connection], T]
#: Handles all items of a batch and returns an outcome for each, in their order.
Together = Callable[[apsw.Connection, Sequence[Item]], Sequence[Outcome]]

#: A batch of at least so many jobs was a crowd: the next one is worth collecting.
_CROWD = 4
#: So many pages in the WAL are worth a checkpoint. Pages that every batch changes are then
#: copied once for many of them, and its two fsyncs are shared by some 800 bets.
_CHECKPOINT_PAGES = 2000
#: While a batch is collected, it is looked at this often, in s.
_TICK_S = 0.002

_BATCH_JOBS = Histogram(
    "tap_batch_jobs", "Jobs in one transaction.", buckets=(1, 2, 5, 10, 25, 50, 100, 250)
)
_BATCH_SECONDS = Histogram(
    "tap_batch_seconds",
    "From BEGIN to the end of COMMIT, in seconds.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
)
_FAILED_BATCHES = Counter("tap_batches_failed_total", "Transactions that could not be written.")
_FAILED_CHECKPOINTS = Counter("tap_checkpoints_failed_total", "Checkpoints that failed.")
_WAITING = Gauge("tap_batch_waiting", "Jobs that wait for the next transaction.")

_STORAGE_ERRORS = (
    apsw.FullError,
    apsw.IOError,
    apsw.ReadOnlyError,
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.NoMemError,
    apsw.BusyError,
    apsw.LockedError,
)


class StorageUnavailableError(Exception):
    """Nothing was written: the database refused the transaction."""


class OverloadedError(Exception):
    """Nothing was written: too many jobs wait already."""


class _NothingKeptError(Exception):
    """Takes back what a probe wrote."""


@dataclass(slots=True)
class _Job:
    """Something to do in a batch, and whom to tell."""

    reply: Callable[[Any], None]  # called on the loop with the answer or an exception
    work: Work[Any] | None = None
    prepare: Callable[[], Any] | None = None
    item: Any = None
    answer: Any = None


class Batcher(Generic[Item, Outcome]):
    """Runs jobs on the database, many to a transaction."""

    def __init__(
        self,
        path: Path,
        together: Together[Item, Outcome] | None = None,
        *,
        max_batch: int = 250,
        max_waiting: int = 2000,
        window_s: float = 0.02,
        checkpoint_pages: int = _CHECKPOINT_PAGES,
    ) -> None:
        self._path = path
        self._together = together or _no_items
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._window_s = window_s
        self._checkpoint_pages = checkpoint_pages
        self._wal_pages = 0
        self._loop = asyncio.get_running_loop()
        self._lock = WriterLock(path)
        self._connection: apsw.Connection | None = None
        self._batches: SimpleQueue[list[_Job] | None] = SimpleQueue()
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._run,), name="batcher"
        )
        self._waiting: list[_Job] = []
        self._seen = 0  # of those waiting, at the last look
        self._collect_until = 0.0  # loop time
        #: How many clients there are, each with one job at a time; 0 when nobody knows.
        self.clients = 0
        self._collecting = False
        self._looking: asyncio.TimerHandle | None = None
        self._writing = False
        self._crowded = False
        self._closing = False
        self._drained = asyncio.Event()
        _WAITING.set_function(lambda: len(self._waiting))

    async def open(self) -> None:
        """Open the database and start the thread. Raises DatabaseError."""
        try:
            await asyncio.to_thread(self._open)
        except DatabaseError:
            self._lock.close()
            raise
        self._thread.start()

    async def close(self) -> None:
        """Finish every job already taken, then stop. Later jobs are refused."""
        if self._closing:
            return
        self._closing = True
        if self._thread.is_alive():
            if self._waiting or self._writing:
                await self._drained.wait()
            self._batches.put(None)
            await asyncio.to_thread(self._thread.join)
        self._lock.close()

    async def run(self, work: Work[T]) -> T:
        """Run `work` in a durable transaction and return its answer.

        What `work` raises is raised here, and nothing of it is kept. Raises
        OverloadedError or StorageUnavailableError when it was not written.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._add(_Job(_told(future), work=work))
        return await future

    async def handle(self, item: Item) -> Outcome:
        """Have `item` handled together with the others of its batch; else like `run`."""
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._add(_Job(_told(future), item=item))
        return await future

    def submit(
        self,
        prepare: Callable[[], Item | None],
        reply: Callable[[Outcome | Exception], None],
    ) -> None:
        """The same without waiting, for an item that is made only when its batch is written:
        making many in a row costs far less than each between other things.

        `prepare` is called on the loop and returns the item, None when there is nothing to
        handle after all and no reply is wanted, or raises. `reply` is called on the loop
        once the item is durable, or with the exception that kept it from being written.

        Raises OverloadedError at once when too many jobs wait already.
        """
        self._add(_Job(cast("Callable[[Any], None]", reply), prepare=prepare))

    async def check(self) -> str:
        """Health check: a write that is really committed. Raises what `run` raises."""

        def probe(connection: apsw.Connection) -> None:
            connection.execute("UPDATE write_probe SET beats = beats + 1")

        await self.run(probe)
        return "ok"

    async def check_rolled_back(self) -> str:
        """Readiness check: a write that nothing is kept of. Raises what `run` raises."""

        def probe(connection: apsw.Connection) -> None:
            connection.execute("CREATE TABLE readiness_probe (beats INTEGER) STRICT")
            raise _NothingKeptError

        with contextlib.suppress(_NothingKeptError):
            await self.run(probe)
        return "ok"

    # Collecting, on the loop.

    def _add(self, job: _Job) -> None:
        if self._closing:
            raise OverloadedError("the service is stopping")
        if len(self._waiting) >= self._max_waiting:
            raise OverloadedError("too many bets are waiting to be written")
        self._waiting.append(job)
        if not (self._writing or self._collecting):
            self._collect()
        elif self._looking is not None and self._plenty():
            self._looking.cancel()
            self._looking = None
            self._loop.call_soon(self._hand_over)

    def _plenty(self) -> bool:
        """Whether so many wait that waiting for more would only keep the writer idle."""
        count = len(self._waiting)
        return count >= self._max_batch or 0 < self.clients <= 2 * count

    def _collect(self) -> None:
        """Begin to collect a batch; the first job of it waits already."""
        self._collecting = True
        if not self._crowded or self._plenty():
            self._loop.call_soon(self._hand_over)
            return
        self._collect_until = self._loop.time() + self._window_s
        self._seen = 0
        self._look()

    def _look(self) -> None:
        """Go on collecting while jobs keep coming."""
        self._looking = None
        count = len(self._waiting)
        enough = count == self._seen or self._plenty()
        if enough or self._loop.time() >= self._collect_until:
            self._hand_over()
        else:
            self._seen = count
            self._looking = self._loop.call_later(_TICK_S, self._look)

    def _hand_over(self) -> None:
        batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
        self._collecting = False
        self._writing = True
        self._crowded = len(batch) >= _CROWD
        ready = [job for job in batch if _prepared(job)]
        if ready:
            self._batches.put(ready)
        else:
            self._done()

    def _written(self, batch: list[_Job], refusal: StorageUnavailableError | None) -> None:
        if refusal is not None:
            # Whoever waits would only wait for the same once more.
            for job in self._waiting:
                job.answer = refusal
            batch, self._waiting = batch + self._waiting, []
        for job in batch:
            _tell(job)
        self._done()

    def _done(self) -> None:
        """The batch has been answered; on to the next."""
        self._writing = False
        if self._waiting:
            self._collect()
        elif self._closing:
            self._drained.set()

    # Writing, in the thread.

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            self._loop.call_soon_threadsafe(self._written, batch, self._write(batch))
            if self._wal_pages >= self._checkpoint_pages:
                self._checkpoint()
        self._disconnect()

    def _write(self, batch: list[_Job]) -> StorageUnavailableError | None:
        """Write the batch; returns why it could not be written, if so."""
        try:
            with self._lock.held():
                began = perf_counter()
                connection = self._connect()
                connection.execute("BEGIN IMMEDIATE")
                self._handle_items(connection, [job for job in batch if job.work is None])
                for job in batch:
                    if job.work is not None:
                        job.answer = _alone(connection, job.work)
                connection.execute("COMMIT")
                took = perf_counter() - began
        except Exception as error:  # whatever it is, the thread lives on and its askers are told
            _FAILED_BATCHES.inc()
            logger.get().error("batch not written", jobs=len(batch), error=str(error))
            refusal = StorageUnavailableError(str(error))
            for job in batch:
                job.answer = refusal
            # Whatever state the connection is in, the next batch starts from a fresh one.
            self._disconnect()
            return refusal
        _BATCH_JOBS.observe(len(batch))
        _BATCH_SECONDS.observe(took)
        return None

    def _checkpoint(self) -> None:
        """Copy the WAL into the database; what cannot be copied now is copied another time."""
        self._wal_pages = 0  # until the next commit counts them anew
        try:
            with self._lock.held():
                self._connect().wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except (apsw.Error, DatabaseError) as error:
            _FAILED_CHECKPOINTS.inc()
            logger.get().warning("WAL not copied into the database", error=str(error))
            self._disconnect()

    def _handle_items(self, connection: apsw.Connection, jobs: list[_Job]) -> None:
        """All together, as the first of the transaction; should that fail, from its beginning
        each on its own, so that one bad item costs only itself.

        Not in a savepoint: that would keep a copy of every page the batch touches.
        """
        if not jobs:
            return
        try:
            outcomes = self._together(connection, [job.item for job in jobs])
            answered = list(zip(jobs, outcomes, strict=True))
        except _STORAGE_ERRORS:
            raise
        except Exception as error:
            logger.get().error("items handled one by one", items=len(jobs), error=str(error))
            connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")
            for job in jobs:
                found = _alone(connection, self._working_on([job]))
                job.answer = found if isinstance(found, Exception) else found[0]
            return
        for job, outcome in answered:
            job.answer = outcome

    def _working_on(self, jobs: list[_Job]) -> Work[Sequence[Outcome]]:
        items = [job.item for job in jobs]
        return lambda connection: self._together(connection, items)

    def _open(self) -> None:
        # A connection that opens may write, and so it does not open beside another writer.
        with self._lock.held():
            self._connect()

    def _connect(self) -> apsw.Connection:
        if self._connection is None:
            self._connection = open_writer(self._path)
            self._connection.set_wal_hook(self._wal_grew)
        return self._connection

    def _wal_grew(self, _connection: apsw.Connection, _database: str, pages: int) -> int:
        # Instead of SQLite's own hook, which would checkpoint before the commit is answered.
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _disconnect(self) -> None:
        if self._connection is None:
            return
        connection, self._connection = self._connection, None
        # Closing rolls back what is open and may checkpoint, so it needs the lock too.
        try:
            with self._lock.held():
                connection.close()
        except (apsw.Error, DatabaseError) as error:
            logger.get().warning("database not closed cleanly", error=str(error))
            connection.close(force=True)


def _alone(connection: apsw.Connection, work: Work[T]) -> T | Exception:
    """Run `work` in a savepoint: its answer, or its own exception with nothing of it kept.

    Raises what is the database's trouble and not the job's: then the batch fails as a whole.
    """
    connection.execute("SAVEPOINT job")
    answer: T | Exception
    try:
        answer = work(connection)
    except _STORAGE_ERRORS:
        raise
    except Exception as error:
        answer = error
        connection.execute("ROLLBACK TO job")
    connection.execute("RELEASE job")
    return answer


def _prepared(job: _Job) -> bool:
    """Whether there is something to write for this job; if not, its asker knows."""
    if job.prepare is None:
        return True
    try:
        job.item = job.prepare()
    except Exception as error:
        job.answer = error
        _tell(job)
        return False
    return job.item is not None


def _tell(job: _Job) -> None:
    try:
        job.reply(job.answer)
    except Exception:  # one client's trouble; its neighbours still get their answers
        logger.get().exception("answer not delivered")


def _no_items(_connection: apsw.Connection, _items: Sequence[Any]) -> Sequence[Any]:
    raise TypeError("this batcher was not told how to handle items")


def _told(future: "asyncio.Future[Any]") -> Callable[[Any], None]:
    """A reply that a waiting coroutine gets, unless it has gone."""

    def reply(answer: Any) -> None:
        if future.done():
            return
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    return reply
