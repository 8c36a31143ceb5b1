"""From a published price to the browser's frame: how long it takes on a running site.

    PYTHONPATH=tests python -m bench.frame_latency --url http://127.0.0.1:8088

A real browser shows the page and notes for each price its stamp, when its message arrived
and when the frame that shows it was drawn. A bar stamped t is published when it is complete,
at t + 100 ms. Site and browser have to share a clock: a machine of scripts/vm.sh does.
"""

import argparse
import math
from collections.abc import Sequence
from typing import Any

from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu"]
#: A bar's length, in ms: it is published this long after its stamp.
BAR_MS = 100
#: The page keeps no more than this many prices.
MOST_PRICES = 1_000
#: What the first frames after loading cost is not what a trader sees afterwards, in s.
WARM_UP_S = 3
PERCENTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "max": 100.0}

Entries = list[dict[str, Any]]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all are not above."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]


def record(url: str, prices: int) -> Entries:
    """Look at the page until so many prices were drawn."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 800}, ignore_https_errors=True)
        page.goto(url)
        page.wait_for_function("() => tapLatency.length > 0", timeout=30_000)
        page.wait_for_timeout(WARM_UP_S * 1_000)
        page.evaluate("tapLatency.length = 0")
        # Ten a second; twice the time that should take, and some.
        page.wait_for_function(
            "(prices) => tapLatency.length >= prices", arg=prices, timeout=prices * 200 + 10_000
        )
        entries: Entries = page.evaluate("tapLatency")
        browser.close()
    return entries[:prices]


def stages(entries: Entries) -> dict[str, list[float]]:
    """The way of each price in ms, whole and in its two halves."""
    return {
        "published to received": [e["received"] - e["t"] - BAR_MS for e in entries],
        "received to drawn": [e["drawn"] - e["received"] for e in entries],
        "published to drawn": [e["drawn"] - e["t"] - BAR_MS for e in entries],
    }


def table(entries: Entries) -> str:
    """One line per stage."""
    lines = [f"{f'ms, {len(entries)} prices':<24}" + "".join(f"{n:>9}" for n in PERCENTILES)]
    for name, values in stages(entries).items():
        cells = "".join(f"{percentile(values, p):>9.1f}" for p in PERCENTILES.values())
        lines.append(f"{name:<24}{cells}")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.frame_latency", description="Measure from price to frame."
    )
    parser.add_argument("--url", required=True, help="address of the site")
    parser.add_argument(
        "--prices", type=int, default=600, help=f"how many prices, at most {MOST_PRICES}"
    )
    args = parser.parse_args()
    if not 0 < args.prices <= MOST_PRICES:
        parser.error(f"--prices must be 1 to {MOST_PRICES}")
    print(table(record(args.url, args.prices)))


if __name__ == "__main__":
    main()
