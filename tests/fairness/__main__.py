"""`make fairness FILES=…`: whether the rates are fair, in words and pictures.

    PYTHONPATH=app/src:tests python -m fairness [--bets N] [--spacing-ms N] [--out FOLDER] [FILE…]

The formula beside simulated paths, a random player in simulated markets of three kinds, and one
in each recorded market. Ends with 1 when anything fails, and with 2 when a file cannot be read.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np

from fairness import simulation
from fairness.early import race
from fairness.game import BARS_PER_S, Rules, play
from fairness.paths import agreement
from fairness.pictures import draw
from fairness.recordings import UnreadableError
from fairness.verdict import Market, count, recorded, simulated

OUT = Path("reports/fairness")
_BETS = 2_000_000
WORST_DIFFERENCE = 0.01
_PATHS = 200_000
#: Simulated markets are made so many at once, each of so many minutes.
_MARKETS, _MINUTES = 40, 30
#: The kinds' parts of the simulated bets.
_PARTS = {"log-normal": 0.6, "square-root": 0.2, "steady": 0.2}
#: In one of so many the early player plays too.
_RACES = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything that was asked for; the exit code."""
    parser = argparse.ArgumentParser(prog="fairness", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="csv: ts_ms,price")
    parser.add_argument("--bets", type=int, default=_BETS, help="simulated; 0: no simulation")
    parser.add_argument("--spacing-ms", type=float, help="length of a bar (default: a file's own)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the report")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    rules = Rules()
    lines, failed = [], False
    try:
        for text, good in _sections(options, rules):
            print(text, flush=True)
            lines.append(text)
            failed |= not good
    except UnreadableError as error:
        print(f"fairness: {error}", file=sys.stderr)
        return 2
    lines.append("FAILED" if failed else "Nothing failed.")
    print(lines[-1])
    (options.out / "report.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"The report is in {options.out}/")
    return 1 if failed else 0


def _sections(options: argparse.Namespace, rules: Rules) -> Iterator[tuple[str, bool]]:
    if options.bets:
        yield _formula()
        for kind, part in _PARTS.items():
            yield _shown(_simulation(kind, rules, options.bets * part), options.out)
    for path in options.files:
        yield _shown(recorded(path, rules, spacing_ms=options.spacing_ms), options.out)


def _formula() -> tuple[str, bool]:
    found = agreement(_PATHS, np.random.default_rng(1))
    good = found.worst <= WORST_DIFFERENCE
    text = (
        f"formula: {'passed' if good else 'FAILED'}\n"
        f"  {len(found.said)} cells against {found.paths} paths each: worst difference "
        f"{found.worst:.4f} (limit {WORST_DIFFERENCE}), standard error at most {found.error:.4f}"
    )
    return text, good


def _simulation(kind: str, rules: Rules, wanted: float) -> Market:
    """At least so many bets in simulated markets; early players race in some of them."""
    random = np.random.default_rng(7)
    counts, races, bets = [], [], 0
    while bets < wanted:
        bars = _MINUTES * 60 * BARS_PER_S
        for tape in simulation.tapes(simulation.KINDS[kind], rules, bars, _MARKETS, random):
            played = play(tape, rules, random)
            counts.append(count(played, np.zeros(len(played), dtype=np.int64)))
            bets += len(played)
            if len(counts) % _RACES == 0:
                with_bump = race(tape, rules, random, bump=True)
                races.append((with_bump, race(tape, rules, random, bump=False)))
        print(f"  … {bets} simulated bets", file=sys.stderr, flush=True)
    return simulated(f"simulated, {kind}", reduce(add, counts), races)


def _shown(market: Market, folder: Path) -> tuple[str, bool]:
    lines = [f"{market.name}: {market.verdict}", f"  {market.about}"]
    lines += [f"  FAILED: {finding}" for finding in market.findings]
    lines += [f"  {note}" for note in market.notes]
    if market.returns:
        lines.append(f"  {'distance, lead':<22}{'bets':>9}{'return':>9}{'error':>8}  95 % band")
        lines += [
            f"  {band.name:<22}{band.bets:>9}{band.mean:>9.3f}{band.error:>8.3f}"
            f"  {band.low:.3f} to {band.high:.3f}"
            for band in market.returns
        ]
        lines.append(f"  {'probability':<22}{'bets':>9}{'offered':>9}{'won':>8}  95 % band")
        lines += [
            f"  {band.name:<22}{band.bets:>9}{offered:>9.3f}{band.mean:>8.3f}"
            f"  {band.low:.3f} to {band.high:.3f}"
            for band, offered in market.calibration
        ]
        draw(market, folder / f"{market.name}.png")
    return "\n".join(lines), not market.findings


if __name__ == "__main__":
    sys.exit(main())
