"""The part of `bench.under_load` that runs on the provisioned machine: bets at a constant rate
and a crowd of WebSockets, until told to stop; then what became of each, and the books.

    python -m bench.site_load RATE SOCKETS SECONDS

Prints `ready` after a warm-up, and at the end one line of JSON. Input: a line `mark NAME`
begins a phase of that name, and `span SINCE UNTIL NAME` (Unix s) has a time told by itself too;
`stop`, or the end of the input, ends the load, as SECONDS do.
"""

import asyncio
import os
import sys
import time
from asyncio import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import uvloop

from bench import phases
from bench.bettors import DATABASE, NGINX, Bets, Offer, loopback, opened, signed_in
from bench.load import Outcome, open_loop
from bench.phases import ACCEPTED, Asked, Phases
from tap_trading.base.db import open_reader

#: A wallet bets so often, in s: far from its limit, and there are cells enough.
_BETS_APART_S = 2
#: So many clients of the WebSockets are signed in, each a wallet that bets.
_TRADERS = 300
_WARM_UP_S = 5.0
#: After the last answer events still come for so long, in s.
_AFTERWARDS_S = 5.0
#: A bet is priced within this time, in s, however long the resolver is away.
_PRICED_S = 30.0
#: An answer of Nginx, or none at all, does not say whether there is a bet.
_UNSURE = frozenset({0, 500, 502, 504})


@dataclass
class Ledger:
    """What the client's side knows of its bets, by their numbers."""

    asked: list[Asked] = field(default_factory=list)  # times as the load counts them
    accepted: dict[int, str] = field(default_factory=dict)  # the bet's id
    unsure: set[int] = field(default_factory=set)
    answered_at: dict[int, float] = field(default_factory=dict)  # those that were accepted

    def observe(self, outcome: Outcome) -> None:
        """A bet has ended."""
        why = outcome.code or ("" if outcome.status else "no answer: the connection ended")
        self.asked.append(Asked(outcome.due, outcome.ms, outcome.status, why))
        if outcome.status == ACCEPTED:
            bet_id = outcome.body.partition(b'"bet_id":"')[2].partition(b'"')[0].decode()
            self.accepted[outcome.number] = bet_id
            self.answered_at[outcome.number] = time.monotonic()
        elif outcome.status in _UNSURE:
            self.unsure.add(outcome.number)

    def compare(self, bets: Bets) -> dict[str, Any]:
        """With the database: each accepted bet is there once, and no other."""
        rows = stored(bets)
        wanted = sorted((bets.key(number), bet_id) for number, bet_id in self.accepted.items())
        unsure = {bets.key(number) for number in self.unsure}
        there, expected = set(rows), set(wanted)
        return {
            "bets": len(rows),
            "accepted_not_there": len(expected - there),
            "there_not_accepted": sum(key not in unsure for key, _ in there - expected),
            "twice": len(rows) - len({key for key, _ in rows}),
            "one_id_for_two": len(wanted) - len({bet_id for _, bet_id in wanted}),
            "unsure": len(unsure),
            "unsure_there": sum(key in unsure for key, _ in rows),
        }

    def never_heard_of(self, bets: Bets, traders: list[dict[str, Any]], priced: set[str]) -> int:
        """Bets that were `priced` and whose traders' streams never told of them, though nobody
        bade them load everything anew.
        """
        heard = [set(trader["bets"]) for trader in traders]
        silent = 0
        for number, bet_id in self.accepted.items():
            wallet, at = bets.wallet(number), self.answered_at[number]
            if wallet < len(traders) and bet_id in priced and bet_id not in heard[wallet]:
                silent += not any(
                    begin <= at + _PRICED_S and at <= end
                    for begin, end in traders[wallet]["unsure"]
                )
        return silent


def priced(bets: Bets) -> set[str]:
    """The bets of the load that are pending no more: their traders are to be told."""
    return {bet_id for _, bet_id in stored(bets, "status <> 'pending'")}


def stored(bets: Bets, which: str = "1") -> list[tuple[str, str]]:
    """Key and id of the load's bets in the database."""
    connection = open_reader(DATABASE)
    rows = connection.execute(
        f"SELECT idempotency_key, id FROM bets WHERE {which}"
        " AND idempotency_key >= ? AND idempotency_key < ?",
        (bets.run, f"{bets.run}~"),
    ).fetchall()
    connection.close()
    return [(str(key), str(bet_id)) for key, bet_id in rows]


def busy_s() -> float:
    """CPU time that the machine's cores have worked since they started."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _waiting, *others = map(int, fields)
    return (user + nice + system + sum(others[:3])) / os.sysconf("SC_CLK_TCK")


class Crowd:
    """The process of `bench.sockets`."""

    def __init__(self, process: subprocess.Process) -> None:
        assert process.stdin
        assert process.stdout
        self._input, self._output = process.stdin, process.stdout
        self._process = process

    @classmethod
    async def start(cls, sources: list[str], tokens: list[str]) -> "Crowd":
        """All are connected then."""
        crowd = cls(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "bench.sockets"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        crowd._input.write(orjson.dumps({"sources": sources, "tokens": tokens}) + b"\n")
        if await crowd._output.readline() != b"ready\n":
            sys.exit("the WebSockets did not connect")
        return crowd

    async def end(self) -> dict[str, Any]:
        """What they saw."""
        self._input.close()
        seen: dict[str, Any] = orjson.loads(await self._output.read())
        await self._process.wait()
        return seen


async def obey(begun: Phases, stop: asyncio.Event) -> None:
    """Follow the controller. The moment a line arrives counts: there is one clock then."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    while (line := (await lines.readline()).decode().strip()) not in ("", "stop"):
        word, _, name = line.partition(" ")
        if word == "mark":
            begun.begin(name, time.monotonic())
        elif word == "span":
            since, until, name = name.split(" ", 2)
            ahead = time.time() - time.monotonic()
            begun.extra.append((name, float(since) - ahead, float(until) - ahead))
    stop.set()


def _longest_gap(seen: dict[str, Any]) -> float:
    """Between two bars that clients heard of, in a price or in a greeting, ms: a greeting also
    tells of what was before this load, and of its gaps.
    """
    heard = {stamp for _, stamp in seen["prices"]}
    begin = min(heard, default=0)
    return phases.longest_gap(heard | {stamp for stamp in seen["greeted"] if stamp >= begin})


async def main() -> None:
    """site_load.py RATE SOCKETS SECONDS"""
    rate, sockets, seconds = map(int, sys.argv[1:])
    wallets = rate * _BETS_APART_S
    tokens, sources = await signed_in(wallets), loopback(max(wallets, sockets))
    offer, ledger, begun, stop = Offer(), Ledger(), Phases(), asyncio.Event()
    bets = Bets(offer, tokens)
    following = asyncio.create_task(offer.follow())
    await offer.known()
    await asyncio.to_thread(opened, tokens, sources)
    crowd = await Crowd.start(sources[:sockets], tokens[:_TRADERS])

    async def warm_up() -> None:
        begun.begin("warm-up", time.monotonic())
        await asyncio.sleep(_WARM_UP_S)
        begun.begin("before", time.monotonic())
        print("ready", flush=True)
        await obey(begun, stop)

    obeying = asyncio.create_task(warm_up())
    busy = busy_s()
    result = await open_loop(
        NGINX,
        bets.requests(),
        rate=lambda _: rate,
        seconds=seconds,
        sources=sources[:wallets],
        observe=ledger.observe,
        stop=stop,
    )
    following.cancel()
    ended = result.began + result.seconds
    busy = busy_s() - busy
    to_be_told = await asyncio.to_thread(priced, bets)
    await asyncio.sleep(_AFTERWARDS_S)
    seen = await crowd.end()
    obeying.cancel()

    asked = [Asked(result.began + one.due, one.ms, one.status, one.why) for one in ledger.asked]
    failures = [
        *((one.due, f"{one.status or ''} {one.why}".strip()) for one in asked if one.failed),
        *offer.failures,
        *((at, f"WebSocket: {why}") for at, why in seen["refused"]),
    ]
    total = phases.of_requests(asked)
    report = {
        **total,
        "failed": total["failed"] + len(offer.failures) + result.unsent,
        "unsent": result.unsent,
        "unconnected": result.unconnected,
        "markets_asked": offer.asked,
        "markets_failed": len(offer.failures),
        "failures": phases.of_failures(failures, begun),
        "phases": {
            name: {
                "seconds": round(until - since, 1),
                **phases.of_requests([one for one in asked if since <= one.due < until]),
                **phases.of_prices(seen["prices"], since, until),
                **phases.of_returns(seen["absences"], since, until),
            }
            for name, since, until in [*begun.spans(ended), *begun.extra]
        },
        "sockets": {
            **phases.of_sockets(seen),
            **phases.of_prices(seen["prices"], begun.begun[0][0], ended),
            "longest_gap_with_greetings_s": _longest_gap(seen) / 1000,
            "bets_never_heard_of": ledger.never_heard_of(bets, seen["traders"], to_be_told),
        },
        "books": ledger.compare(bets),
        "cost": {
            "bets_core": round(result.own_cpu, 2),
            "sockets_core": round(seen["core"], 2),
            "cores_busy": round(busy / (time.monotonic() - _AFTERWARDS_S - result.began), 2),
            "cores": os.cpu_count(),
        },
    }
    print(orjson.dumps(report).decode(), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
