"""`tap`: what it answers besides money, and how it ends when it cannot."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from tests.integration.conftest import Tap

from tap_trading.base.config import SETTING_NAMES


#: A command's exit code, standard output and standard error.
@pytest.fixture
def tap(tmp_path: Path, run_tap: Tap, monkeypatch: pytest.MonkeyPatch) -> Tap:
    """`tap("migrate")` in this process, on databases of its own."""
    monkeypatch.setenv("DB_PATH", str(tmp_path / "bets.db"))
    monkeypatch.setenv("PRICES_DB_PATH", str(tmp_path / "prices.db"))

    return run_tap


def test_migrate_creates_the_databases_and_then_changes_nothing(tap: Tap, tmp_path: Path) -> None:
    code, out, _ = tap("migrate")
    assert code == 0
    first, *_, last = out.splitlines()
    assert first == f"applied 001_initial.sql to {tmp_path / 'bets.db'}"
    assert last == f"applied 001_prices.sql to {tmp_path / 'prices.db'}"
    assert tap("migrate") == (0, "the schema is up to date\n", "")


def test_backup_says_what_it_made(tap: Tap, tmp_path: Path) -> None:
    code, _, err = tap("backup", "--dest", str(tmp_path / "copies"))
    assert code == 1
    assert err.startswith("tap: ")
    tap("migrate")
    code, out, _ = tap("backup", "--dest", str(tmp_path / "copies"), "--keep", "2")
    [made] = (tmp_path / "copies").iterdir()
    assert (code, out) == (0, f"{made} {made.stat().st_size} bytes, checked; 0 older removed\n")
    assert tap("backup", "--keep", "none")[0] == 2


def test_settings_are_shown_as_they_are_in_force(
    tap: Tap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAP_STAKES", "7,11")
    code, out, _ = tap("settings")
    lines = dict(line.split("=", 1) for line in out.splitlines())
    assert code == 0
    assert tuple(lines) == SETTING_NAMES
    assert lines["TAP_STAKES"] == "7,11"
    assert lines["DB_PATH"] == str(tmp_path / "bets.db")


def test_a_wrong_setting_ends_it_with_code_78(tap: Tap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAP_STAKES", "many")
    code, _, err = tap("audit")
    assert code == 78
    assert err.startswith("tap: wrong configuration: TAP_STAKES='many'")


def test_version_names_the_build(tap: Tap) -> None:
    code, out, _ = tap("version")
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines()] == [
        *("version", "build_time", "git_commit", "python_version"),
    ]


@pytest.fixture
def service() -> Iterator[str]:
    """The address of a service that is well."""

    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"status": "ok", "checks": {"redis": "ok"}}).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_health_asks_every_service(tap: Tap, service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API", "WS", "PRICE", "RESOLVER"):
        monkeypatch.setenv(f"TAP_{name}_LISTEN", service)
    code, out, _ = tap("health")
    assert (code, out.splitlines()[0]) == (0, "api       ok (redis: ok)")
    monkeypatch.setenv("TAP_WS_LISTEN", "127.0.0.1:1")
    code, out, _ = tap("health")
    assert code == 1
    assert out.splitlines()[1].startswith("ws        does not answer at 127.0.0.1:1: ")
    assert out.splitlines()[2] == "price     ok (redis: ok)"
