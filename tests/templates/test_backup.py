"""The settings of the copies, and what is refused of them before anything is changed."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from tap_trading.base import config
from templates.render import accepts, evaluate, render

MANAGED = "Written by Ansible"
STORAGE: dict[str, Any] = {
    "backup_s3_bucket": "tap-copies",
    "backup_s3_access_key_id": "app",
    "backup_s3_secret": "hidden",
}


def tap_accepts(**variables: Any) -> bool:
    """Whether `tap` takes the settings that these variables become."""
    text = render("backup", "backup.env.j2", ansible_managed=MANAGED, **variables)
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    try:
        config.load(dict(shlex.split(line)[0].split("=", 1) for line in lines))
    except (config.ConfigError, ValueError):  # also a line that is none
        return False
    return True


@pytest.mark.parametrize(
    ("variables", "good"),
    [
        ({}, True),
        ({"backup_s3_endpoint": "https://s3.example.net"}, True),
        ({"backup_s3_endpoint": "http://[::1]:9000/"}, True),
        ({"backup_s3_endpoint": "s3.example.net"}, False),
        ({"backup_s3_endpoint": "https://S3.example.net"}, False),
        ({"backup_s3_endpoint": "https://s3.example.net/path"}, False),
        ({"backup_s3_endpoint": "https://" + "a" * 243}, False),
        ({"backup_s3_bucket": "Tap"}, False),
        ({"backup_s3_bucket": "a.b"}, False),
        ({"backup_s3_bucket": "ab"}, False),
        ({"backup_s3_bucket": "tap-copies\n"}, False),
        ({"backup_s3_region": ""}, False),
        ({"backup_s3_region": "eu west"}, False),
        ({"backup_s3_prefix": "sites/one"}, True),
        ({"backup_s3_prefix": "sites/"}, False),
        ({"backup_s3_prefix": "/sites"}, False),
        ({"backup_s3_prefix": "a" * 201}, False),
        ({"backup_s3_access_key_id": ""}, False),
        ({"backup_s3_access_key_id": "two words"}, False),
    ],
)
def test_a_storage_is_refused_where_tap_refuses_it(variables: dict[str, Any], good: bool) -> None:
    given = STORAGE | variables
    accepted = accepts("backup", "Refuse a storage that cannot be reached", **given)
    assert (accepted, tap_accepts(**given)) == (good, good)


def test_a_bucket_needs_a_secret_and_none_needs_nothing() -> None:
    task = "Refuse a storage that cannot be reached"
    assert not accepts("backup", task, **STORAGE | {"backup_s3_secret": ""})
    assert accepts("backup", task)


@pytest.mark.parametrize(
    ("key", "good"),
    [
        ("", True),
        ("A" * 43 + "=", True),
        ("A" * 43, False),
        ("A" * 44, False),
        ("A" * 43 + "=\n", False),
        ("-" * 43 + "=", False),
    ],
)
def test_a_key_has_32_bytes(key: str, good: bool) -> None:
    assert accepts("backup", "Refuse a key that encrypts nothing", backup_key=key) is good


def test_secrets_are_files_that_go_when_they_are_no_longer_set() -> None:
    def files(**variables: Any) -> dict[str, str]:
        listed = evaluate("backup", "_backup_secrets", **variables)
        return {item["name"]: item["content"] for item in listed}

    assert files() == {"s3-secret": "", "key": ""}
    assert files(**STORAGE, backup_key="k") == {"s3-secret": "hidden", "key": "k"}
    assert files(backup_s3_secret="hidden")["s3-secret"] == ""
