"""Sealed files: opened again they are what they were, and nothing that was done to one passes."""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import process_environment, python

from tap_trading.archive import sealing
from tap_trading.archive.sealing import Key, SealError, check, seal, unseal

KEY = Key(bytes(range(32)))
OTHER = Key(bytes(range(1, 33)))
LABEL = b'{"of": "a test"}'
CHUNK = 1 << 20

with_or_without = pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])


def sealed_file(folder: Path, key: Key | None, content: bytes, label: bytes = LABEL) -> Path:
    source = folder / "source"
    source.write_bytes(content)
    target = folder / f"copy.db{sealing.suffix(key)}"
    seal(source, target, key, label)
    return target


@with_or_without
@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 77])
@pytest.mark.parametrize("label", [b"", LABEL, b"x" * sealing.LONGEST_LABEL])
def test_what_was_sealed_comes_back(
    key: Key | None, size: int, label: bytes, tmp_path: Path
) -> None:
    content = random.Random(size).randbytes(size)  # which does not become smaller
    sealed = sealed_file(tmp_path, key, content, label)
    opened = unseal(sealed, tmp_path / "out", key)
    assert (tmp_path / "out").read_bytes() == content
    assert (opened.label, opened.size) == (label, size)
    assert check(sealed, key) == opened


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=3000), label=st.binary(max_size=100), encrypted=st.booleans())
def test_any_content_comes_back(
    content: bytes, label: bytes, encrypted: bool, tmp_path: Path
) -> None:
    key = KEY if encrypted else None
    opened = unseal(sealed_file(tmp_path, key, content, label), tmp_path / "out", key)
    assert ((tmp_path / "out").read_bytes(), opened.label) == (content, label)


@with_or_without
def test_every_flipped_byte_is_caught_and_the_file_named(key: Key | None, tmp_path: Path) -> None:
    sealed = sealed_file(tmp_path, key, b"the books " * 50)
    whole = sealed.read_bytes()
    for position in range(len(whole)):
        for flip in (0x01, 0x80):
            altered = bytearray(whole)
            altered[position] ^= flip
            sealed.write_bytes(altered)
            with pytest.raises(SealError) as said:
                check(sealed, key)
            assert str(said.value).startswith(f"{sealed} "), position


@with_or_without
def test_a_flipped_bit_anywhere_in_a_large_file_is_caught(key: Key | None, tmp_path: Path) -> None:
    chance = random.Random(7)
    sealed = sealed_file(tmp_path, key, chance.randbytes(3 * CHUNK))
    whole = sealed.read_bytes()
    for _ in range(25):
        altered = bytearray(whole)
        altered[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        sealed.write_bytes(altered)
        with pytest.raises(SealError, match="altered"):
            unseal(sealed, tmp_path / "out", key)


@with_or_without
def test_every_cut_is_noticed(key: Key | None, tmp_path: Path) -> None:
    sealed = sealed_file(tmp_path, key, random.Random(3).randbytes(2 * CHUNK))
    whole = sealed.read_bytes()
    cuts = {*range(200), *range(len(whole) - 200, len(whole))}
    if key is not None:  # at the ends of chunks, where each one by itself is authentic
        cuts |= {8 + 24 + number * (CHUNK + 17) for number in range(3)}
    for cut in sorted(cuts):
        sealed.write_bytes(whole[:cut])
        with pytest.raises(SealError, match=str(sealed)):
            check(sealed, key)


@with_or_without
@pytest.mark.parametrize("more", [b"\0", b"x" * 40, b"x" * (2 * CHUNK)])
def test_bytes_behind_the_end_are_noticed(key: Key | None, more: bytes, tmp_path: Path) -> None:
    sealed = sealed_file(tmp_path, key, b"the books")
    with sealed.open("ab") as file:
        file.write(more)
    with pytest.raises(SealError, match=str(sealed)):
        check(sealed, key)
    twice = sealed_file(tmp_path, key, b"the books")
    twice.write_bytes(twice.read_bytes() * 2)
    with pytest.raises(SealError, match=str(sealed)):
        check(twice, key)


def test_chunks_in_another_order_are_noticed(tmp_path: Path) -> None:
    sealed = sealed_file(tmp_path, KEY, random.Random(1).randbytes(4 * CHUNK))
    whole, begin, size = sealed.read_bytes(), 8 + 24, CHUNK + 17
    first, second = whole[begin : begin + size], whole[begin + size : begin + 2 * size]
    sealed.write_bytes(whole[:begin] + second + first + whole[begin + 2 * size :])
    with pytest.raises(SealError, match=f"{sealed} was altered in its first chunk"):
        check(sealed, KEY)


def test_the_wrong_key_and_none_are_said_so(tmp_path: Path) -> None:
    sealed = sealed_file(tmp_path, KEY, b"the books")
    with pytest.raises(SealError, match="or sealed with another key"):
        check(sealed, OTHER)
    with pytest.raises(SealError, match="is encrypted, and there is no key"):
        check(sealed, None)


def test_an_encrypted_copy_cannot_be_replaced_by_a_plain_one(tmp_path: Path) -> None:
    sealed = sealed_file(tmp_path, KEY, b"the books")
    plain = sealed_file(tmp_path, None, b"the books of somebody else")
    plain.rename(sealed)
    with pytest.raises(SealError, match="does not begin as an encrypted file does"):
        check(sealed, KEY)


def test_copies_from_before_there_was_a_key_open_with_one(tmp_path: Path) -> None:
    assert check(sealed_file(tmp_path, None, b"the books"), KEY).size == 9


def test_the_content_is_not_to_be_read_in_an_encrypted_file(tmp_path: Path) -> None:
    content = random.Random(5).randbytes(1000)
    assert content[:200] not in sealed_file(tmp_path, KEY, content).read_bytes()
    assert content[:200] in sealed_file(tmp_path, None, content).read_bytes()
    assert LABEL not in sealed_file(tmp_path, KEY, content).read_bytes()


@pytest.mark.parametrize("content", [b"", b"\x28\xb5\x2f\xfd", b"no zstd at all" * 10])
def test_other_files_are_no_sealed_ones(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.zst"
    path.write_bytes(content)
    with pytest.raises(SealError, match=str(path)):
        check(path, None)
    with pytest.raises(SealError, match="No such file"):
        check(tmp_path / "none.zst", None)


@pytest.mark.skipif(not shutil.which("zstd"), reason="zstd is not here")
def test_any_zstd_opens_a_copy_without_a_key(tmp_path: Path) -> None:
    content = random.Random(9).randbytes(2 * CHUNK) + bytes(CHUNK)
    sealed = sealed_file(tmp_path, None, content)
    subprocess.run(["zstd", "-q", "-d", sealed, "-o", tmp_path / "out"], check=True)
    assert (tmp_path / "out").read_bytes() == content


def test_a_key_is_32_bytes_in_base64(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for text in (Key.generate(), Key.generate() + "\n"):
        path.write_text(text)
        assert len(Key.read(path).secret) == 32
    assert Key.generate() != Key.generate()
    assert "secret" not in repr(Key.read(path))
    for wrong, says in [("!!", "not base64"), ("QUJD", "3 bytes instead of 32"), ("", "0 bytes")]:
        path.write_text(wrong)
        with pytest.raises(SealError, match=says):
            Key.read(path)
    with pytest.raises(SealError, match="cannot be read: No such file"):
        Key.read(tmp_path / "none")


def test_a_disk_that_is_full_is_said_so(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    with pytest.raises(SealError, match="No space left on device"):
        seal(source, Path("/dev/full"), None)
    sealed = sealed_file(tmp_path, None, os.urandom(1 << 16))
    with pytest.raises(SealError, match="No space left on device"):
        unseal(sealed, Path("/dev/full"), None)


SEAL_AND_OPEN = """
import resource, sys
from pathlib import Path
from tap_trading.archive.sealing import Key, seal, unseal
folder, key = Path(sys.argv[1]), Key(bytes(32))
seal(folder / "small", folder / "small.sealed", key)
unseal(folder / "small.sealed", folder / "out", key)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seal(folder / "large", folder / "large.sealed", key)
unseal(folder / "large.sealed", folder / "out", key)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_large_file_takes_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(os.urandom(4 * CHUNK))
    with (tmp_path / "large").open("wb") as file:
        for _ in range(100):
            file.write(os.urandom(CHUNK))
    done = subprocess.run(
        python("-c", SEAL_AND_OPEN, str(tmp_path)),
        env=process_environment({}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 20_000  # KiB
    assert (tmp_path / "out").stat().st_size == 100 * CHUNK
