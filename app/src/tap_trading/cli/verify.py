"""`tap verify`: rates and results computed again from what is stored."""

import argparse
import hashlib
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import chain, islice

import apsw
import orjson

from tap_trading.archive.shelf import Shelf
from tap_trading.base.config import Settings
from tap_trading.cli.command import Add, RefusedError, books
from tap_trading.ledger import queries
from tap_trading.settlement import evidence, verification
from tap_trading.settlement.evidence import Case, Decision
from tap_trading.settlement.verification import Result

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}(:\d{2}(\.\d{3})?)?Z)?")
#: So many bets are verified together: enough that a call of the rate model costs little for each,
#: few enough that their windows take some 20 MB, however far apart they are.
_AT_ONCE = 2000
#: Wrong bets that are named; all are counted.
_LISTED = 20
#: Ledgers, each with the prices that decided its bets.
Sources = Iterator[tuple[apsw.Connection, apsw.Connection]]


def add_to(add: Add) -> None:
    """Add the command."""
    command = add(
        "verify",
        _verify,
        "Compute a bet's rate and result again from the stored bars, and say so in words; or"
        " those of all bets placed in a time. Exit code 1 when anything differs.",
    )
    command.add_argument("bet_id", metavar="BET_ID", nargs="?")
    command.add_argument(
        "--from", dest="begin", type=_moment, metavar="TIME", help="2026-01-31 or …T12:00:00Z, UTC"
    )
    command.add_argument("--to", dest="end", type=_moment, metavar="TIME", help="until before then")


def _verify(settings: Settings, args: argparse.Namespace) -> int:
    if (args.bet_id is None) == (args.begin is None) or (args.begin is None) != (args.end is None):
        raise RefusedError("verify one BET_ID, or all bets --from a time --to another")
    with books(settings.db_path) as ledger, books(settings.prices_db_path) as prices:
        sources = _sources(settings, ledger, prices)
        if args.bet_id is not None:
            return _one(settings, sources, args.bet_id)
        return _all(settings, sources, args.begin, args.end)


def _sources(settings: Settings, ledger: apsw.Connection, prices: apsw.Connection) -> Sources:
    """The archives on this machine, oldest first, and the books as they are when this begins."""
    shelf = Shelf(settings.archive_dir)
    begins_behind = ledger.execute("SELECT week FROM horizon").get
    for week in reversed(shelf.weeks()):
        if week.name <= begins_behind:
            with shelf.open(week) as archive:
                yield archive, archive
    yield ledger, prices


def _one(settings: Settings, sources: Sources, bet_id: str) -> int:
    found = ((each, prices) for each, prices in sources if queries.row_of(each, bet_id) is not None)
    ledger, prices = next(found, (None, None))
    if ledger is None or prices is None:
        raise RefusedError(f"there is no bet with the id {bet_id}")
    [case] = chain.from_iterable(_chunks(settings, ledger, prices, [bet_id]))
    bet, findings = case.found.bet, verification.verify(case)
    print(f"{bet.bet_id} is {case.found.status}: {bet.amount} cents on {bet.cell_id}")
    for finding in findings:
        print(f"  {'right' if finding.right else 'WRONG'}  {finding.text}")
    return 0 if all(finding.right for finding in findings) else 1


def _all(settings: Settings, sources: Sources, begin: int, end: int) -> int:
    """Every bet placed in [begin, end) again; the results as stored and as computed, as hashes
    of a line of JSON for each bet, are the same if nothing differs.
    """
    stored, computed = hashlib.sha256(), hashlib.sha256()
    count = wrong = 0
    for cases in chain.from_iterable(
        _chunks(settings, ledger, prices, queries.placed_between(ledger, begin, end))
        for ledger, prices in sources
    ):
        for case, result in zip(cases, verification.replay(cases), strict=True):
            ours = _line(case.found.bet.bet_id, verification.stored(case.found))
            theirs = _line(case.found.bet.bet_id, result)
            stored.update(ours)
            computed.update(theirs)
            count += 1
            if ours != theirs:
                wrong += 1
                if wrong <= _LISTED:
                    print(f"WRONG {ours.decode().strip()} should be {theirs.decode().strip()}")
    print(f"{count} bets, {wrong} of them wrong")
    print(f"stored   {stored.hexdigest()}")
    print(f"computed {computed.hexdigest()}")
    return 1 if wrong else 0


def _line(bet_id: str, result: Result) -> bytes:
    return orjson.dumps([bet_id, *result]) + b"\n"


def _chunks(
    settings: Settings, ledger: apsw.Connection, prices: apsw.Connection, bet_ids: Iterable[str]
) -> Iterator[list[Case]]:
    """The bets with what decided them, in their order. Raises RefusedError where one cannot be
    verified, after those before it.
    """
    ids = iter(bet_ids)
    while wanted := list(islice(ids, _AT_ONCE)):
        decided: list[Decision] = []
        for found in evidence.decisions(ledger, wanted):
            if found is None:
                break
            decided.append(found)
        yield evidence.cases(prices, decided, settings.speed_bump_ms)
        if len(decided) < len(wanted):
            raise _refusal(ledger, wanted[len(decided)])


def _refusal(ledger: apsw.Connection, bet_id: str) -> RefusedError:
    bet = queries.any_bet(ledger, bet_id)
    if bet is None:
        return RefusedError(f"there is no bet with the id {bet_id}")
    return RefusedError(f"the bet {bet_id} is on no cell: {bet.cell_id}")


def _moment(text: str) -> int:
    if not _DAY.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-01-31T12:00:00Z")
    try:
        moment = datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    return int(moment.timestamp() * 1000)
