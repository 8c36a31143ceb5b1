"""`tap verify`: rates and results computed again from what is stored."""

import argparse
import hashlib
import re
from datetime import UTC, datetime

import apsw
import orjson

from tap_trading.base.config import Settings
from tap_trading.cli.command import Add, RefusedError, books
from tap_trading.ledger import queries
from tap_trading.ledger.queries import Bet
from tap_trading.settlement import evidence, verification
from tap_trading.settlement.evidence import Decision, Evidence

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}(:\d{2}(\.\d{3})?)?Z)?")
#: Wrong bets that are named; all are counted.
_LISTED = 20


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
        if args.bet_id is not None:
            return _one(settings, ledger, prices, args.bet_id)
        return _all(settings, ledger, prices, args.begin, args.end)


def _one(settings: Settings, ledger: apsw.Connection, prices: apsw.Connection, bet_id: str) -> int:
    bet, found, proof = _read(settings, ledger, prices, bet_id)
    findings = verification.verify(bet, found, proof)
    print(f"{bet.bet_id} is {bet.status}: {bet.amount} cents on {bet.cell_id}")
    for finding in findings:
        print(f"  {'right' if finding.right else 'WRONG'}  {finding.text}")
    return 0 if all(finding.right for finding in findings) else 1


def _all(
    settings: Settings, ledger: apsw.Connection, prices: apsw.Connection, begin: int, end: int
) -> int:
    """Every bet placed in [begin, end) again; the results as stored and as computed, as hashes
    of a line of JSON for each bet, are the same if nothing differs.
    """
    stored, computed = hashlib.sha256(), hashlib.sha256()
    count = wrong = 0
    for bet_id in queries.placed_between(ledger, begin, end):
        bet, found, proof = _read(settings, ledger, prices, bet_id)
        ours = _line(bet_id, bet.status, bet.reward_rate_bps, bet.payout_amount)
        theirs = ours
        if bet.status != "insufficient_funds":
            theirs = _line(bet_id, *verification.replay(bet, found, proof))
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


def _line(bet_id: str, status: str, rate_bps: int | None, payout: int | None) -> bytes:
    return orjson.dumps([bet_id, status, rate_bps, payout]) + b"\n"


def _read(
    settings: Settings, ledger: apsw.Connection, prices: apsw.Connection, bet_id: str
) -> tuple[Bet, Decision, Evidence]:
    bet = queries.any_bet(ledger, bet_id)
    if bet is None:
        raise RefusedError(f"there is no bet with the id {bet_id}")
    found = evidence.decision(ledger, bet_id)
    if found is None:
        raise RefusedError(f"the bet {bet_id} is on no cell: {bet.cell_id}")
    return bet, found, evidence.evidence(prices, found, settings.speed_bump_ms)


def _moment(text: str) -> int:
    if not _DAY.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-01-31T12:00:00Z")
    try:
        moment = datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    return int(moment.timestamp() * 1000)
