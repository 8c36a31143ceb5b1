"""The report: the product's rates pass, rates that give money away do not."""

from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import pytest

from fairness import simulation
from fairness.__main__ import main
from fairness.early import Race, joined, race
from fairness.game import Rules, play
from fairness.verdict import Market, count, recorded, simulated
from tap_trading.game.rates import RateModel

RULES = Rules()
GENEROUS = Rules(rates=RateModel(edge_bps=0, surcharge=0.0, deviates=(-8.0,), weights=(1.0,)))


def some_markets(rules: Rules, markets: int = 16) -> Market:
    random = np.random.default_rng(11)
    counts = []
    for tape in simulation.tapes(simulation.Market(), rules, 9_000, markets, random):
        bets = play(tape, rules, random)
        counts.append(count(bets, np.zeros(len(bets), dtype=np.int64)))
    return simulated("simulated", reduce(add, counts), [])


def test_a_random_player_in_simulated_markets_gets_back_what_was_promised() -> None:
    found = some_markets(RULES)
    everyone = found.returns[-1]
    assert everyone.bets > 100_000
    assert everyone.error < 0.03
    assert 0.93 - 3 * everyone.error < everyone.mean < 0.97 + 3 * everyone.error
    assert not any(band.low > 1.0 or band.high < 0.85 for band in found.returns)
    for band, offered in found.calibration:
        assert band.mean == pytest.approx(offered, rel=0.2, abs=0.005)


def test_rates_that_take_the_estimate_for_the_truth_are_found_out() -> None:
    # A quarter too low: what a mixture and an unhurried estimate are there against.
    low = Rules(volatility=replace(RULES.volatility, caution=0.75, unsteady=0.0, unknown=0.0))
    found = some_markets(low, markets=8)
    assert any("random player" in finding for finding in found.findings)
    assert any(finding.startswith("bets of 2+ sd") for finding in found.findings)


def races(bump: bool) -> Race:
    random = np.random.default_rng(12)
    tapes = simulation.tapes(simulation.Market(), RULES, 6_000, 16, random)
    return joined([race(tape, RULES, random, bump=bump) for tape in tapes])


def test_seeing_the_price_early_pays_without_the_speed_bump_and_not_with_it() -> None:
    early, late, error = races(bump=False).gain
    assert early - late > max(0.1, 3 * error)
    early, late, error = races(bump=True).gain
    assert early - late < 2 * error


def write(path: Path, cents: np.ndarray) -> Path:
    lines = (f"{1_700_000_000_000 + i * 1000},{price / 100:.2f}" for i, price in enumerate(cents))
    path.write_text("ts_ms,price\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 9,000 closes of a Brownian market at 2 dollars, in whole cents, with holes."""
    random = np.random.default_rng(8)
    cents = np.round(200 * np.exp(np.cumsum(random.standard_normal(9_000) * 5e-3)))
    return write(tmp_path_factory.mktemp("markets") / "two-dollars.csv", np.maximum(cents, 1))


def test_a_market_of_two_dollars_in_whole_cents_passes(walk: Path) -> None:
    found = recorded(walk, RULES)
    assert found.findings == []
    assert 0.75 < found.returns[-1].mean < 1.1
    assert any(note.startswith("power: ") for note in found.notes)


def test_a_recorded_market_finds_out_rates_that_give_money_away(walk: Path) -> None:
    found = recorded(walk, GENEROUS)
    assert any("above 1.00" in finding for finding in found.findings)


def test_the_recorded_seconds_of_2016_pass(market_data: Path) -> None:
    path = market_data / "replay" / "coinbase_BTCUSD_1s-bar-close_2016-10-07_2016-10-09.csv"
    found = recorded(path, RULES)
    assert found.findings == []
    assert found.returns[-1].bets > 10_000
    assert any(note.startswith("by blocks of columns") for note in found.notes)


def test_the_report_holds_words_and_pictures(
    walk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--bets", "0", "--out", str(tmp_path / "out"), str(walk)]) == 0
    text = (tmp_path / "out" / "report.txt").read_text()
    assert "two-dollars: passed" in text
    assert "power: " in text
    assert "speed bump" in text
    assert text.rstrip().endswith("Nothing failed.")
    assert text.strip() in capsys.readouterr().out
    assert (tmp_path / "out" / "two-dollars.png").stat().st_size > 10_000


def test_a_failing_market_ends_with_1(
    walk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairness.__main__.Rules", lambda: GENEROUS)
    assert main(["--bets", "0", "--out", str(tmp_path / "out"), str(walk)]) == 1
    assert "FAILED" in (tmp_path / "out" / "report.txt").read_text()


def test_a_file_that_cannot_be_read_ends_with_2_and_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("ts_ms,price\n1700000000000,100\n1700000001000,abc\n")
    assert main(["--bets", "0", "--out", str(tmp_path / "out"), str(path)]) == 2
    assert f"{path}:3: price is not a number: 'abc'" in capsys.readouterr().err


def test_a_market_too_short_to_play_says_so(tmp_path: Path) -> None:
    found = recorded(write(tmp_path / "short.csv", np.full(50, 6_000_000)), RULES)
    assert found.returns == []
    assert "NOTHING WAS TESTED" in found.notes[0]
