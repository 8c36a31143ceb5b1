"""Nothing secret was shown while the machine was previewed and provisioned."""

import re

import pytest
from testinfra.host import Host

from e2e.site.machine import ROOT, Machine

LOG = ROOT / "reports" / "molecule.log"
SECRET_FILES = (
    "/etc/ssl/private/tap-trading.key",
    "/etc/ssh/ssh_host_*_key",
)
LOOKS_SECRET = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|\b(?:password|passwd|passphrase|secret|token)\b\s*[=:]\s*(?!no\b|yes\b|false\b|true\b|null\b)\S"
    r"|\$[156y]\$\S{8}",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def shown(machine: Machine) -> str:
    """Everything Ansible said to this machine's operator, differences included."""
    if machine.name != "tap-molecule":
        pytest.skip(f"{LOG} is not about {machine.name}: leaks were NOT looked for")
    return LOG.read_text()


def test_the_record_shows_what_was_changed_on_the_machine(shown: str) -> None:
    assert re.search(r"PLAY RECAP", shown)
    assert len(re.findall(r"\+\+\+ after", shown)) > 20
    assert "TAP_API_LISTEN" in shown


def test_nothing_in_it_looks_like_a_secret(shown: str) -> None:
    found = [line for line in shown.splitlines() if LOOKS_SECRET.search(line)]
    assert found == []


def test_no_line_of_a_private_key_is_in_it(shown: str, host: Host, machine: Machine) -> None:
    keys = host.check_output("cat " + " ".join(SECRET_FILES)).splitlines()
    keys += machine.ssh_config.with_name("id_ed25519").read_text().splitlines()
    secret = [line for line in keys if len(line) >= 16 and not line.startswith("-----")]
    assert len(secret) >= 5
    assert [line for line in secret if line in shown] == []


def test_the_keys_are_for_root_alone(host: Host) -> None:
    for pattern in SECRET_FILES:
        for path in host.check_output(f"ls {pattern}").split():
            file = host.file(path)
            assert (file.user, file.mode) == ("root", 0o600), path
