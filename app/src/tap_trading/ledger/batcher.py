"""The one write path: jobs from many requests share a transaction and its fsync.

One thread owns the writing connection. It takes whatever jobs are waiting, runs each in
a savepoint of its own inside one BEGIN IMMEDIATE … COMMIT, and only then answers them:
an answer means the commit is on disk. A job that fails is undone alone; its neighbours
never notice. The writer's lock is held per batch.
"""

import asyncio
import contextvars
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import apsw
from prometheus_client import Counter, Histogram

from tap_trading.base import logger
from tap_trading.base.db import DatabaseError, WriterLock, open_writer

T = TypeVar("T")

#: What a job does: reads and writes on the given connection, and returns its answer.
Work = Callable[[apsw.Connection], T]

_BATCH_JOBS = Histogram(
    "tap_batch_jobs", "Jobs in one transaction.", buckets=(1, 2, 5, 10, 25, 50, 100, 250)
)
_BATCH_SECONDS = Histogram(
    "tap_batch_seconds",
    "From BEGIN to the end of COMMIT, in seconds.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5),
)
_FAILED_BATCHES = Counter("tap_batches_failed_total", "Transactions that could not be written.")


_STORAGE_ERRORS = (
    apsw.FullError,
    apsw.IOError,
    apsw.ReadOnlyError,
    apsw.CorruptError,
    apsw.NotADBError,
)


class StorageUnavailableError(Exception):
    """Nothing was written: the database refused the transaction."""


class OverloadedError(Exception):
    """Nothing was written: too many jobs wait already."""


@dataclass(slots=True)
class _Job(Generic[T]):
    work: Work[T]
    reply: asyncio.Future[T]
    answer: T | None = None
    error: Exception | None = None


class Batcher:
    """Runs jobs on the database, many to a transaction."""

    def __init__(self, path: Path, *, max_batch: int = 250, max_waiting: int = 5000) -> None:
        self._path = path
        self._max_batch = max_batch
        self._jobs: queue.Queue[_Job[Any] | None] = queue.Queue(max_waiting)
        self._loop = asyncio.get_running_loop()
        self._lock = WriterLock(path)
        self._connection: apsw.Connection | None = None
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._run,), name="batcher"
        )
        self._closing = False

    async def open(self) -> None:
        """Open the database and start the thread. Raises DatabaseError."""
        try:
            await asyncio.to_thread(self._connect)
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
            await asyncio.to_thread(self._jobs.put, None)
            await asyncio.to_thread(self._thread.join)
        self._lock.close()

    async def run(self, work: Work[T]) -> T:
        """Run `work` in a durable transaction and return its answer.

        What `work` raises is raised here, and nothing of it is kept. Raises
        OverloadedError or StorageUnavailableError when it was not written.
        """
        if self._closing:
            raise OverloadedError("the service is stopping")
        job: _Job[T] = _Job(work, self._loop.create_future())
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise OverloadedError("too many bets are waiting to be written") from None
        answer: T = await job.reply
        return answer

    async def check(self) -> str:
        """Health check: a write that is really committed. Raises what `run` raises."""

        def probe(connection: apsw.Connection) -> None:
            connection.execute("UPDATE write_probe SET beats = beats + 1")

        await self.run(probe)
        return "ok"

    # The thread's side.

    def _run(self) -> None:
        stopping = False
        while not stopping:
            first = self._jobs.get()
            batch: list[_Job[Any]] = []
            while first is not None:
                batch.append(first)
                if len(batch) >= self._max_batch:
                    break
                try:
                    first = self._jobs.get_nowait()
                except queue.Empty:
                    break
            stopping = first is None
            if batch:
                self._write(batch)
                self._loop.call_soon_threadsafe(_answer, batch)
        self._disconnect()

    def _write(self, batch: list[_Job[Any]]) -> None:
        began = time.perf_counter()
        try:
            with self._lock.held():
                connection = self._connect()
                connection.execute("BEGIN IMMEDIATE")
                for job in batch:
                    self._do(connection, job)
                connection.execute("COMMIT")
        except Exception as error:  # whatever it is, the thread lives on and its askers are told
            _FAILED_BATCHES.inc()
            logger.get().error("batch not written", jobs=len(batch), error=str(error))
            refusal = StorageUnavailableError(str(error))
            for job in batch:
                job.error = refusal
            # Whatever state the connection is in, the next batch starts from a fresh one.
            self._disconnect()
            return
        _BATCH_JOBS.observe(len(batch))
        _BATCH_SECONDS.observe(time.perf_counter() - began)

    @staticmethod
    def _do(connection: apsw.Connection, job: _Job[Any]) -> None:
        connection.execute("SAVEPOINT job")
        try:
            job.answer = job.work(connection)
        except _STORAGE_ERRORS:
            raise  # the database's trouble, not the job's: the batch fails as a whole
        except Exception as error:  # the job's own: undone alone, told to its asker
            job.error = error
            connection.execute("ROLLBACK TO job")
        connection.execute("RELEASE job")

    def _connect(self) -> apsw.Connection:
        if self._connection is None:
            self._connection = open_writer(self._path)
        return self._connection

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


def _answer(batch: list[_Job[Any]]) -> None:
    for job in batch:
        if job.reply.done():  # its client has gone; the neighbours still get theirs
            continue
        if job.error is not None:
            job.reply.set_exception(job.error)
        else:
            job.reply.set_result(job.answer)
