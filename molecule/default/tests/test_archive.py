"""The archiver on the machine: in its sandbox, with nothing to do in a week that goes on."""

from testinfra.host import Host

from e2e.site.machine import Machine


def test_the_archiver_ends_with_nothing_left_undone(machine: Machine, host: Host) -> None:
    machine.run("/opt/app/scripts/archive-weekly.sh", timeout=120)
    shown = host.check_output(
        "systemctl show tap-trading-archiver --property=Result,ExecMainStatus"
    )
    assert set(shown.splitlines()) == {"Result=success", "ExecMainStatus=0"}
    told = host.file("/data/metrics/archive.prom").content_string.splitlines()
    assert "tap_archive_failed 0.0" in told
    assert "tap_archives 0.0" in told
    folder = host.file("/data/archive")
    assert (folder.user, folder.group, folder.mode) == ("app", "app", 0o750)
    assert host.check_output("tap archives") == "no week was archived yet"


def test_the_archiver_says_which_build_it_is(host: Host) -> None:
    said = host.check_output("/opt/app/current/archiver --version")
    live = host.check_output("readlink /opt/app/current").removeprefix("releases/")
    assert f"version: {live}" in said.splitlines()
