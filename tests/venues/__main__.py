"""Play exchanges from the command line, each on a port of its own.

    PYTHONPATH=tests python -m venues SPEC… [--speed 10] [--loop] [--port 9100] [--fault FAULT]

SPEC is `VENUE:TRADES.csv[,offset_cents=N][,offset_bps=N][,delay_ms=N]` (VENUE: coinbase,
kraken, kraken-v1, bitstamp, gemini, binance) or `recording:FILE.ndjson.gz`. FAULT is
`kind[:after=MESSAGES][:at_s=SECONDS][:connection=N][:count=N]`, for every exchange played.
Prints one line of JSON, the URLs in the order of the SPECs, and plays until it is ended.
"""

import argparse
import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import uvloop

from venues.faults import Fault
from venues.player import Player
from venues.recording import Recording
from venues.script import Script
from venues.synthetic import DIALECTS, Synthetic, read_trades


def script_of(spec: str, *, loop: bool) -> tuple[Script, str]:
    """The script that a SPEC names, and the path of its URL. Raises ValueError."""
    what, _, rest = spec.partition(":")
    file, *settings = rest.split(",")
    if what == "recording":
        return Recording.read(Path(file)), "/"
    if what not in DIALECTS:
        raise ValueError(f"no venue is called {what!r}")
    given: dict[str, Any] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in ("offset_cents", "offset_bps", "delay_ms"):
            raise ValueError(f"a venue has no {name!r}")
        given[name] = int(value)
    script = Synthetic(what, read_trades(Path(file)), loop=loop, **given)
    return script, script.dialect.path


async def play(args: argparse.Namespace) -> None:
    """Until cancelled."""
    async with contextlib.AsyncExitStack() as stack:
        urls = []
        for number, spec in enumerate(args.spec):
            script, path = script_of(spec, loop=args.loop)
            player = Player(
                script,
                speed=args.speed,
                live=args.live,
                faults=args.fault,
                path=path,
                port=args.port + number if args.port else 0,
            )
            await stack.enter_async_context(player)
            urls.append(player.url)
        print(json.dumps(urls), flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m venues")
    parser.add_argument("spec", nargs="+")
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--loop", action="store_true", help="play trades over and over")
    parser.add_argument("--live", action="store_true", help="one timeline for all connections")
    parser.add_argument("--port", type=int, default=0, help="the first port; 0: any")
    parser.add_argument("--fault", type=Fault.parse, action="append", default=[])
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(play(parser.parse_args()))


if __name__ == "__main__":
    main()
