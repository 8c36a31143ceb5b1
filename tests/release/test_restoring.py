"""Copies put in the place of the databases: what is lost is said twice, whatever cuts it off."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from tap_release import colours, deployment, restoring
from tap_release.machine import ReleaseError
from tap_release.restoring import Wanted
from tests.release.fake_machine import VERSION, FakeMachine, installed
from tests.release.test_deployment import boot, cut_off, deploy, serves

COPY = "bets-20260302T100000Z.db.zst.sealed"
PRICES = "prices-20260302T100000Z.db.zst.sealed"
TOLD_TWICE = Wanted(over_newer=True, lose_since="20260302T100000Z")


class Tap:
    """What the live release's `tap` makes ready, and says of it."""

    def __init__(self, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine = machine
        self.lost = [0, 0]  # entries, as the site goes on and when it is stopped
        self.keeps_prices = False
        self._real = machine.run
        monkeypatch.setattr(machine, "run", self._run)
        for folder in ("archive", "restore"):
            (machine.data / folder).mkdir(exist_ok=True)
        for name in ("bets.db", "bets.db-wal", "prices.db", "archive/bets_2026_w09.db"):
            (machine.data / name).write_text(f"{name} as it was")

    def _run(self, *command: str) -> str:
        said = self._real(*command)
        if command[1:2] == ("restore-prepare",):
            return self._prepare()
        if command[1:2] == ("restore-compare",):
            lost = self.lost[0] if len(self.lost) == 1 else self.lost.pop(0)
            return json.dumps(
                {
                    "lost_entries": lost,
                    "last_entry": "led_9, written at 1772445600000 (Unix ms)",
                    "keeps_prices": self.keeps_prices,
                }
            )
        if "list-units" in command:
            return "tap-trading-backup.timer loaded active waiting x\n"
        return said

    def _prepare(self) -> str:
        ready = self.machine.data / "restore"
        (ready / "archive").mkdir(exist_ok=True)
        for name in ("bets.db", "prices.db", "archive/bets_2026_w08.db", "plan.json"):
            (ready / name).write_text(f"{name} of the copy")
        return json.dumps(
            {
                "copies": {"bets": COPY, "prices": PRICES},
                "rows": {"bets": 7, "prices": 9},
                "fetched": ["bets_2026_w08.db"],
                "unknown": ["bets_2026_w09.db"],
                "missing": [],
            }
        )


@pytest.fixture
def tap(machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tap:
    installed(machine, tmp_path, VERSION)
    deploy(machine, VERSION)
    machine.commands.clear()
    return Tap(machine, monkeypatch)


def there(machine: FakeMachine) -> dict[str, str]:
    """The databases and archives of the site, and what each is."""
    files = [*machine.data.glob("*.db*"), *(machine.data / "archive").iterdir()]
    return {path.name: path.read_text().split(" ", 1)[1] for path in files if path.is_file()}


BEFORE = dict.fromkeys(("bets.db", "bets.db-wal", "prices.db", "bets_2026_w09.db"), "as it was")
AFTER = dict.fromkeys(("bets.db", "prices.db", "bets_2026_w08.db"), "of the copy")


def put_aside(machine: FakeMachine) -> set[str]:
    return {path.name for path in (machine.data / "aside").glob("*/*")}


def restore(machine: FakeMachine, wanted: Wanted | None = None) -> dict[str, Any]:
    return restoring.restore(machine, wanted or Wanted(), by="ops@desk")


def test_the_site_goes_on_with_the_copies(machine: FakeMachine, tap: Tap) -> None:
    done = restore(machine)
    assert there(machine) == AFTER
    assert put_aside(machine) == set(BEFORE)
    assert done["copies"] == {"bets": COPY, "prices": PRICES}
    assert (done["changed"], done["lost_entries"], done["missing_archives"]) == (True, 0, [])
    assert serves(machine, VERSION)
    assert not machine.restore.exists()
    assert not list((machine.data / "restore").iterdir())


def test_nothing_writes_while_files_are_moved_and_all_runs_again(
    machine: FakeMachine, tap: Tap
) -> None:
    seen: list[set[str]] = []

    def look(line: str) -> None:
        if "flushall" in line:
            seen.append(set(machine.running))

    machine.on_command = look
    restore(machine)
    assert seen == [set()]
    lines = machine.commands
    timer = "systemctl stop tap-trading-backup.timer tap-trading-backup.service "
    stopped = next(i for i, line in enumerate(lines) if line.startswith(timer))
    ports = next(i for i, line in enumerate(lines) if "stop tap-trading-price.socket" in line)
    assert ports < stopped < lines.index("systemctl start tap-trading-backup.timer")
    assert machine.commands.count(f"smoke {VERSION}") == 1


def test_prices_that_go_on_from_the_copy_stay_unless_they_are_named(
    machine: FakeMachine, tap: Tap
) -> None:
    tap.keeps_prices = True
    assert restore(machine)["copies"] == {"bets": COPY}
    assert there(machine)["prices.db"] == "as it was"
    assert restore(machine, Wanted(prices=PRICES))["copies"] == {"bets": COPY, "prices": PRICES}
    assert there(machine)["prices.db"] == "of the copy"


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(),
        Wanted(over_newer=True),
        Wanted(lose_since="20260302T100000Z"),
        Wanted(over_newer=True, lose_since="20260302T110000Z"),
    ],
)
def test_entries_are_lost_by_saying_so_twice_alone(
    machine: FakeMachine, tap: Tap, wanted: Wanted
) -> None:
    tap.lost = [41]
    with pytest.raises(ReleaseError) as refused:
        restore(machine, wanted)
    said = str(refused.value)
    assert f"have 41 entries that {COPY} has not" in said
    assert said.endswith("-e restore_over_newer=true -e restore_lose_since=20260302T100000Z")
    assert there(machine) == BEFORE
    assert not any(line.startswith("systemctl stop") for line in machine.commands)
    assert not list((machine.data / "restore").iterdir()), "its room is given back"
    assert restore(machine, TOLD_TWICE)["lost_entries"] == 41
    assert there(machine) == AFTER


def test_books_that_nobody_can_read_count_as_newer(machine: FakeMachine, tap: Tap) -> None:
    tap.lost = [None]  # type: ignore[list-item] # as JSON has it
    with pytest.raises(ReleaseError, match="nobody can tell whether the books here are newer"):
        restore(machine)
    restore(machine, TOLD_TWICE)
    assert there(machine) == AFTER


def test_what_is_written_until_the_stop_counts_too(machine: FakeMachine, tap: Tap) -> None:
    tap.lost = [0, 2]
    with pytest.raises(ReleaseError, match=r"have 2 entries .* the site was stopped .* goes on"):
        restore(machine)
    assert there(machine) == BEFORE
    assert serves(machine, VERSION)
    assert not machine.restore.exists()


def test_without_a_live_release_nothing_is_restored(machine: FakeMachine) -> None:
    with pytest.raises(ReleaseError, match="no release is live"):
        restore(machine)


def test_a_site_that_does_not_come_up_says_where_everything_is(
    machine: FakeMachine, tap: Tap
) -> None:
    machine.unseen = {VERSION}
    with pytest.raises(ReleaseError, match=r"aside/\d{8}T\d{6}Z.*recover.yml goes on"):
        restore(machine)
    assert put_aside(machine) == set(BEFORE)
    machine.unseen = set()
    done = restoring.recover(machine)
    assert done is not None
    assert done["result"] == f"finished, {COPY} was restored"
    assert there(machine) == AFTER
    assert serves(machine, VERSION)
    assert restoring.recover(machine) is None


def test_a_refusal_that_is_cut_off_restores_nothing(
    machine: FakeMachine, tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    with contextlib.suppress(ReleaseError):  # at last it is refused to its end
        while True:
            tap.lost = [0, 2]
            assert cut_off(machine, steps, monkeypatch, lambda: restore(machine))
            told = restoring.recover(machine)
            assert told is None or told["result"] == "taken back, nothing was restored", steps
            assert there(machine) == BEFORE, steps
            assert serves(machine, VERSION), steps
            steps += 1
    assert steps > 20


@pytest.mark.parametrize("rebooted", [False, True])
def test_cut_off_anywhere_the_site_goes_on_with_the_one_or_the_other(
    machine: FakeMachine, tmp_path: Path, rebooted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    seen = set()
    while True:
        machine.__init__(tmp_path / f"opt{steps}")  # type: ignore[misc] # a new one
        monkeypatch.setattr(machine, "run", machine.__class__.run.__get__(machine))
        installed(machine, tmp_path, VERSION)
        deploy(machine, VERSION)
        Tap(machine, monkeypatch)
        if not cut_off(machine, steps, monkeypatch, lambda: restore(machine)):
            break
        if rebooted:
            boot(machine)
        deployment.recover(machine)
        told = None
        with contextlib.suppress(ReleaseError):
            told = restoring.recover(machine)
        found = there(machine)
        if told is not None:
            assert str(told["result"]).startswith("finished") == (found == AFTER), steps
        assert found in (BEFORE, AFTER), (steps, found)
        seen.add(found == AFTER)
        assert colours.live(machine) is not None
        assert serves(machine, VERSION), steps
        assert not machine.restore.exists(), steps
        # Nothing is gone.
        assert found == BEFORE or put_aside(machine) == set(BEFORE), steps
        # And it can be done again.
        restore(machine)
        assert AFTER.items() <= there(machine).items(), steps
        steps += 1
    assert seen == {False, True}
    assert steps > 30
