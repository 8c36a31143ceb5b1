"""What the API and `tap` say of bets that were archived, wherever the archive is."""

from pathlib import Path
from typing import Any

import pytest

from archived_site import LATER, WEEK, Site, many_weeks, rows
from object_storage import Storage
from tap_trading.archive import cold
from tap_trading.auth.sessions import Sessions
from tap_trading.base.clock import system_clock
from tap_trading.base.db import open_writer
from tap_trading.services import api

Tap = Any


@pytest.fixture
def tap(run_tap: Tap, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Tap:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return run_tap


def archived_bet(path: Path, status: str = "won") -> tuple[str, str]:
    [found, *_] = rows(path, f"SELECT id, user_id FROM bets WHERE status = '{status}'")
    return found[0], found[1]


async def test_tap_verifies_and_shows_an_archived_bet(site: Site, tap: Tap) -> None:
    [made] = site.archive()
    bet_id, user = archived_bet(made.path)
    code, out, _ = tap("verify", bet_id)
    assert code == 0, out
    assert out.startswith(f"{bet_id} is won: ")
    assert "WRONG" not in out
    code, out, _ = tap("show", "bet", bet_id)
    assert code == 0
    assert "PAYOUT" in out
    assert user in out


async def test_a_period_is_verified_over_archives_and_books(site: Site, tap: Tap) -> None:
    span = ("verify", "--from", "2025-11-30", "--to", "2025-12-02")
    code, before, _ = tap(*span)
    assert code == 0, before
    site.archive()
    code, after, _ = tap(*span)
    assert code == 0, after
    assert before.splitlines()[0] == after.splitlines()[0]
    assert before.splitlines()[0].endswith(" bets, 0 of them wrong")


async def test_tap_history_of_a_week_here_and_in_cold_storage(
    site: Site, tap: Tap, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [made] = site.archive()
    bet_id, user = archived_bet(made.path)
    code, here, _ = tap("history", WEEK.name, user)
    assert code == 0
    assert f"  {bet_id}\n" in here
    assert here.count("DEPOSIT") == 1
    cold.store(site.books, site.shelf, storage.store(), None, LATER)
    made.path.unlink()
    code, _, refused = tap("history", WEEK.name, user)
    assert code == 1
    assert "is missing, and no cold storage is configured" in refused
    for name, value in storage.settings(tmp_path).items():
        monkeypatch.setenv(name, value)
    code, fetched, _ = tap("history", WEEK.name, user)
    assert (code, fetched) == (0, here)
    assert [path.name for path in site.shelf.folder.iterdir()] == [".lock"]


async def test_archives_are_pruned_once_they_are_proven_elsewhere(
    site: Site, tap: Tap, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = many_weeks(site, 3)
    code, _, said = tap("archive-prune")
    assert (code, "so no archive was removed" in said) == (1, True)
    for name, value in storage.settings(tmp_path).items():
        monkeypatch.setenv(name, value)
    assert tap("archive-prune", "--keep", "0")[0] == 2
    code, out, _ = tap("archive-prune", "--keep", "2")
    assert (code, out.splitlines()[-1]) == (0, "1 archives removed")
    assert [path.exists() for path in paths] == [False, True, True]
    storage.alter(f"machine/archive/{paths[1].name}.zst", lambda content: content.reverse())
    code, _, said = tap("archive-prune")
    assert (code, paths[1].name in said) == (1, True)
    assert [path.exists() for path in paths] == [False, True, True]


async def test_tap_history_refuses_what_is_not_there(site: Site, tap: Tap) -> None:
    assert tap("archives")[1] == "no week was archived yet\n"
    site.archive()
    code, _, said = tap("history", "2025_w20", "nobody")
    assert code == 1
    assert "2025_w20 is not archived" in said
    code, _, said = tap("history", WEEK.name, "nobody")
    assert code == 1
    assert "nobody with the id or address nobody was there in 2025_w48" in said
    code, _, said = tap("history", "last week", "nobody")
    assert code == 2
    assert "is no week such as 2026_w47" in said
    code, said, _ = tap("archives")
    assert code == 0
    assert said.startswith("2025_w48 ")
    assert said.endswith(" here\n")


async def test_the_api_shows_archived_bets_with_their_evidence(
    site: Site, serve: Any, environment: dict[str, str], redis: Any
) -> None:
    [made] = site.archive()
    bet_id, user = archived_bet(made.path)
    token, _ = await Sessions(redis, system_clock).open(user, "wallet")
    async with serve(api.build) as client:
        headers = {"Authorization": f"Bearer {token}"}
        answer = await client.get(f"/api/bets/{bet_id}", headers=headers)
        told = await answer.json()
        assert answer.status == 200, told
        assert told["status"] == "won"
        assert len(told["evidence"]["bars"]) == 50
        assert told["evidence"]["rate"]["price"] > 0
        listed = await (await client.get("/api/bets?limit=100", headers=headers)).json()
        assert bet_id in [bet["bet_id"] for bet in listed["items"]]
        assert listed["archived_before"] is None
        connection = open_writer(site.books)
        connection.execute("UPDATE archives SET stored_at = 1, is_local = 0")
        connection.close()
        listed = await (await client.get("/api/ledger", headers=headers)).json()
        assert listed["archived_before"] == "2025-12-01T00:00:00.000Z"
