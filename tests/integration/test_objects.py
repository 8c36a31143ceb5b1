"""The object store against a real S3 API: what is put comes back, and a bad day is got over."""

import random
import time
from pathlib import Path

import pytest

from object_storage import BUCKET, CUT, HANG, IMPATIENT, RESET, SECRET, Storage
from tap_trading.archive import objects
from tap_trading.archive.objects import (
    AlteredError,
    DeniedError,
    MissingError,
    ObjectStore,
    Patience,
    Place,
    StoreError,
)
from tap_trading.base import config

MEGABYTE = 1 << 20


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest parts that S3 takes."""
    monkeypatch.setattr(objects, "PART_BYTES", 5 * MEGABYTE)


def written(path: Path, size: int) -> Path:
    path.write_bytes(random.Random(size).randbytes(size))
    return path


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("size", [0, 1, 1000, 5 * MEGABYTE - 1, 5 * MEGABYTE, 12 * MEGABYTE + 7])
def test_what_was_put_comes_back(storage: Storage, size: int, tmp_path: Path) -> None:
    store, file = storage.store(), written(tmp_path / "file", size)
    store.put(file, "backups/a b+c.zst", "STANDARD")
    store.verify("backups/a b+c.zst", file)
    store.fetch("backups/a b+c.zst", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert storage.stored() == ["machine/backups/a b+c.zst"]
    [found] = store.list("backups/")
    assert (found.key, found.size) == ("backups/a b+c.zst", size)
    assert abs(found.modified.timestamp() - time.time()) < 60
    assert storage.unfinished() == []
    assert {path.name for path in tmp_path.iterdir()} == {"file", "back"}


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("size", [10, 6 * MEGABYTE])
def test_the_storage_class_is_the_callers(storage: Storage, size: int, tmp_path: Path) -> None:
    storage.store().put(written(tmp_path / "file", size), "key", "STANDARD_IA")
    head = storage.client.head_object(Bucket=BUCKET, Key="machine/key")
    assert head["StorageClass"] == "STANDARD_IA"


def test_keys_are_listed_in_order_and_those_of_others_are_not(
    storage: Storage, tmp_path: Path
) -> None:
    file = written(tmp_path / "file", 1)
    for key in ("b", "a/2", "a/10", "ab"):
        storage.store().put(file, key, "STANDARD")
    storage.store("machine2").put(file, "a/3", "STANDARD")
    storage.store("").put(file, "a/4", "STANDARD")
    assert [item.key for item in storage.store().list("a/")] == ["a/10", "a/2"]
    assert [item.key for item in storage.store().list()] == ["a/10", "a/2", "ab", "b"]
    assert [item.key for item in storage.store("").list("a/")] == ["a/4"]


def test_more_keys_than_a_page_has_are_all_listed(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_PAGE", 3)
    for number in range(10):
        storage.client.put_object(Bucket=BUCKET, Key=f"machine/{number}", Body=b"")
    assert [item.key for item in storage.store().list()] == list("0123456789")
    assert storage.proxy.requests == ["GET"] * 4


def test_putting_again_replaces(storage: Storage, tmp_path: Path) -> None:
    store = storage.store()
    store.put(written(tmp_path / "one", 10), "key", "STANDARD")
    store.put(written(tmp_path / "two", 20), "key", "STANDARD")
    store.verify("key", tmp_path / "two")
    assert storage.stored() == ["machine/key"]


def test_a_flipped_byte_is_caught_and_the_object_named(storage: Storage, tmp_path: Path) -> None:
    store, file = storage.store(), written(tmp_path / "file", 5000)
    store.put(file, "key", "STANDARD")

    def flip(content: bytearray) -> None:
        content[4711] ^= 1

    storage.alter("machine/key", flip)
    with pytest.raises(AlteredError, match="s3://tap-copies/machine/key is not what it should be"):
        store.verify("key", file)
    with pytest.raises(AlteredError, match="s3://tap-copies/machine/key is not what was put"):
        store.fetch("key", tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_not_there_is_said_so(storage: Storage, tmp_path: Path) -> None:
    store = storage.store()
    assert store.head("no") is None
    with pytest.raises(MissingError, match="no"):
        store.fetch("no", tmp_path / "back")
    with pytest.raises(MissingError):
        store.verify("no", "0" * 64)
    place = Place("no-such-bucket", "app", SECRET, storage.endpoint)
    with pytest.raises(MissingError, match="could not list"):
        ObjectStore(place, IMPATIENT).list()
    assert list(tmp_path.iterdir()) == []


def test_an_object_is_removed_if_that_is_allowed(storage: Storage, tmp_path: Path) -> None:
    store = storage.store()
    store.put(written(tmp_path / "file", 1), "key", "STANDARD")
    storage.proxy.fault = lambda method, _: (403, "AccessDenied") if method == "DELETE" else None
    assert store.remove("key") is False
    assert storage.stored() == ["machine/key"]
    storage.proxy.heal()
    assert store.remove("key") is True
    assert storage.stored() == []


# -- a bad day ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("size", [1000, 11 * MEGABYTE])
@pytest.mark.parametrize(
    "fault",
    [(500, "InternalError"), (503, "SlowDown"), (507, "InsufficientStorage"), RESET, CUT],
    ids=str,
)
def test_whatever_fails_now_and_then_is_got_over(
    storage: Storage, fault: tuple[int, str] | str, size: int, tmp_path: Path
) -> None:
    """Two of three requests fail."""
    store, file = storage.store(), written(tmp_path / "file", size)
    storage.proxy.fault = lambda _, number: fault if number % 3 else None
    store.put(file, "key", "STANDARD")
    store.verify("key", file)
    store.fetch("key", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    if fault != CUT:  # which loses the answer that an upload has begun: the bucket's rules end it
        assert storage.unfinished() == []


@pytest.mark.usefixtures("small_parts")
def test_a_completion_whose_answer_is_lost_counts(storage: Storage, tmp_path: Path) -> None:
    store, file = storage.store(), written(tmp_path / "file", 6 * MEGABYTE)
    posts: list[int] = []

    def fault(method: str, number: int) -> str | None:
        if method == "POST":
            posts.append(number)
        return CUT if method == "POST" and len(posts) == 2 else None

    storage.proxy.fault = fault
    store.put(file, "key", "STANDARD")
    assert len(posts) == 3
    store.verify("key", file)


def test_a_cut_download_goes_on_where_it_broke(storage: Storage, tmp_path: Path) -> None:
    store, file = storage.store(), written(tmp_path / "file", 9 * MEGABYTE)
    store.put(file, "key", "STANDARD")
    sent = []
    storage.proxy.fault = lambda method, _: (
        sent.append(method) or (CUT if len(sent) < 20 and method == "GET" else None)
    )
    # More cuts than attempts: each time something more has arrived.
    store.verify("key", file)
    assert len(sent) == 20


@pytest.mark.parametrize("fault", [(503, "SlowDown"), (507, "InsufficientStorage"), RESET], ids=str)
def test_what_goes_on_failing_is_given_up_and_said_in_one_sentence(
    storage: Storage, fault: tuple[int, str] | str, tmp_path: Path
) -> None:
    store, file = storage.store(), written(tmp_path / "file", 1000)
    storage.proxy.fault = lambda *_: fault
    with pytest.raises(StoreError, match=r"could not put key: .* \(tried 4 times\)") as said:
        store.put(file, "key", "STANDARD")
    assert "\n" not in str(said.value)
    assert SECRET not in str(said.value)
    assert len(storage.proxy.requests) == 4


def test_a_storage_that_is_not_there_is_said_so(storage: Storage, tmp_path: Path) -> None:
    store, file = storage.store(), written(tmp_path / "file", 1000)
    storage.proxy.close()
    with pytest.raises(StoreError, match=r"Could not connect to the endpoint .*\(tried 4 times\)"):
        store.put(file, "key", "STANDARD")
    storage.proxy.listen()
    store.put(file, "key", "STANDARD")
    store.verify("key", file)


def test_a_storage_that_never_answers_is_not_waited_for_for_ever(
    storage: Storage, tmp_path: Path
) -> None:
    hasty = Patience(attempts=2, first_pause_s=0.01, connect_s=0.5, answer_s=0.5)
    store = storage.store(patience=hasty)
    storage.proxy.fault = lambda *_: HANG
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"timeout.*\(tried 2 times\)"):
        store.list()
    assert time.monotonic() - began < 4


def test_a_slow_storage_is_waited_for(storage: Storage, tmp_path: Path) -> None:
    store = storage.store(patience=Patience(attempts=1, answer_s=5))
    file = written(tmp_path / "file", MEGABYTE)
    storage.proxy.bytes_per_s = 0.5 * MEGABYTE
    began = time.monotonic()
    store.put(file, "key", "STANDARD")
    store.verify("key", file)
    assert time.monotonic() - began > 3
    assert storage.proxy.requests == ["PUT", "GET"]


def test_who_is_refused_does_not_try_again(storage: Storage, tmp_path: Path) -> None:
    store, file = storage.store(), written(tmp_path / "file", 10)
    storage.proxy.fault = lambda *_: (403, "SignatureDoesNotMatch")
    with pytest.raises(DeniedError, match=r"could not put key: .*SignatureDoesNotMatch"):
        store.put(file, "key", "STANDARD")
    assert len(storage.proxy.requests) == 1


@pytest.mark.usefixtures("small_parts")
def test_an_upload_that_is_given_up_leaves_no_parts(storage: Storage, tmp_path: Path) -> None:
    store, file = storage.store(), written(tmp_path / "file", 11 * MEGABYTE)
    storage.proxy.fault = lambda method, number: (
        (403, "AccessDenied") if method == "PUT" and number > 2 else None
    )
    with pytest.raises(DeniedError):
        store.put(file, "key", "STANDARD")
    assert (storage.stored(), storage.unfinished()) == ([], [])


def test_pauses_grow_are_random_and_bounded() -> None:
    patience = Patience(first_pause_s=1, longest_pause_s=10)
    assert [patience.pause_s(n, lambda: 1.0) for n in range(1, 7)] == [1, 2, 4, 8, 10, 10]
    assert patience.pause_s(3, lambda: 0.25) == 1
    assert len({patience.pause_s(3) for _ in range(10)}) > 1


# -- settings -----------------------------------------------------------------------------------


def test_without_a_bucket_there_is_no_store() -> None:
    assert ObjectStore.of(config.load({})) is None


def test_the_store_is_made_of_the_settings(storage: Storage, tmp_path: Path) -> None:
    store = ObjectStore.of(config.load(storage.settings(tmp_path)), IMPATIENT)
    assert store is not None
    assert str(store) == "s3://tap-copies/machine/"
    store.put(written(tmp_path / "file", 1), "key", "STANDARD")
    assert storage.stored() == ["machine/key"]


def test_a_secret_that_cannot_be_read_is_said_so(storage: Storage, tmp_path: Path) -> None:
    settings = storage.settings(tmp_path)
    Path(settings["TAP_S3_SECRET_FILE"]).unlink()
    with pytest.raises(StoreError, match="s3-secret cannot be read"):
        ObjectStore.of(config.load(settings))


@pytest.mark.parametrize(
    ("name", "value", "good"),
    [
        ("TAP_S3_BUCKET", "Tap", False),
        ("TAP_S3_BUCKET", "a", False),
        ("TAP_S3_ENDPOINT", "https://s3.example.net:9000", True),
        ("TAP_S3_ENDPOINT", "http://[::1]:9000/", True),
        ("TAP_S3_ENDPOINT", "s3.example.net", False),
        ("TAP_S3_PREFIX", "site/machine-1", True),
        ("TAP_S3_PREFIX", "/site", False),
        ("TAP_S3_PREFIX", "site/", False),
        ("TAP_S3_ACCESS_KEY_ID", "", False),
        ("TAP_S3_SECRET_FILE", "", False),
    ],
)
def test_what_the_settings_take(name: str, value: str, good: bool, tmp_path: Path) -> None:
    given = {
        "TAP_S3_BUCKET": "tap-copies",
        "TAP_S3_ACCESS_KEY_ID": "app",
        "TAP_S3_SECRET_FILE": "/etc/x",
    }
    if good:
        config.load({**given, name: value})
    else:
        with pytest.raises(config.ConfigError):
            config.load({**given, name: value})
