"""Files in S3-compatible storage: put, listed, fetched, and proven by reading them back.

Each object carries the SHA-256 of its bytes, of our own reckoning: what storage, network and
libraries make of their checksums does not matter. Whatever fails for a while is tried again with
growing, random pauses, for a bounded number of times; whatever is refused is not. Nothing here
needs the right to delete.
"""

import hashlib
import random
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from tap_trading.base.config import Settings
from tap_trading.base.files import sha256_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

P = ParamSpec("P")
T = TypeVar("T")

StorageClass = Literal["STANDARD", "STANDARD_IA"]

#: Larger files are put in parts of this size, one after the other: what they take of memory.
PART_BYTES = 16 << 20

#: Read at once: where a connection breaks, so much is read again at the most.
_READ_BYTES = 1 << 16
#: Keys that are listed at once; S3 gives no more.
_PAGE = 1000
#: Where an object keeps its SHA-256, among its metadata.
_SHA256 = "sha256"

_DENIED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
_FOR_A_WHILE = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
_FOR_A_WHILE_CODES = {"RequestTimeout", "SlowDown", "Throttling", "RequestTimeTooSkewed"}


class StoreError(Exception):
    """The storage did not do what it was asked; the text says what, where and why."""


class DeniedError(StoreError):
    """The storage knows us, or does not, and refuses: trying again is of no use."""


class MissingError(StoreError):
    """There is no such object, or no such bucket."""


class AlteredError(StoreError):
    """What the storage gives back is not what was put."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object of the storage."""

    key: str  # without the store's prefix
    size: int  # bytes
    modified: datetime  # when it was put, UTC


@dataclass(frozen=True, slots=True)
class Place:
    """Where the objects are, and as whom they are reached."""

    bucket: str
    access_key_id: str
    secret: str = field(repr=False)
    endpoint: str = ""  # AWS without one
    region: str = "us-east-1"
    prefix: str = ""  # of all keys, without a slash at its end


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the storage is waited for."""

    attempts: int = 6
    first_pause_s: float = 0.5  # doubled with each attempt; each pause is random, up to that
    longest_pause_s: float = 20.0
    connect_s: float = 10.0
    answer_s: float = 60.0  # without a byte coming or going

    def pause_s(self, failed: int, draw: Callable[[], float] = random.random) -> float:
        """How long to wait after so many failures in a row."""
        return min(self.longest_pause_s, self.first_pause_s * 2.0 ** (failed - 1)) * draw()


class ObjectStore:
    """A bucket, or the part of it under a prefix. Keys are given and told without the prefix."""

    def __init__(self, place: Place, patience: Patience | None = None) -> None:
        self._place = place
        self._patience = patience or Patience()
        self._prefix = f"{place.prefix}/" if place.prefix else ""
        self._client, self._failures = _connect(place, self._patience)

    @classmethod
    def of(cls, settings: Settings, patience: Patience | None = None) -> "ObjectStore | None":
        """The configured storage; None when there is none. Raises StoreError."""
        if not settings.s3_bucket or settings.s3_secret_file is None:
            return None
        path = settings.s3_secret_file
        try:
            secret = path.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"the secret {path} cannot be read: {error}") from error
        place = Place(
            bucket=settings.s3_bucket,
            access_key_id=settings.s3_access_key_id,
            secret=secret,
            endpoint=settings.s3_endpoint,
            region=settings.s3_region,
            prefix=settings.s3_prefix,
        )
        return cls(place, patience)

    def __str__(self) -> str:
        return f"s3://{self._place.bucket}/{self._prefix}"

    def put(self, path: Path, key: str, storage_class: StorageClass) -> None:
        """Store the file under `key`, instead of what may be there.

        It is there as a whole or not at all. Whether it is there unharmed only `verify` tells.
        Raises StoreError, and OSError when the file cannot be read.
        """
        sha256 = sha256_of(path)
        with path.open("rb") as file:
            first = file.read(PART_BYTES)
            if len(first) == PART_BYTES:
                parts = chain((first,), iter(lambda: file.read(PART_BYTES), b""))
                self._put_in_parts(parts, key, storage_class, sha256)
                return
        self._ask(
            f"put {key}",
            self._client.put_object,
            **self._at(key),
            Body=first,
            StorageClass=storage_class,
            Metadata={_SHA256: sha256},
        )

    def head(self, key: str) -> tuple[StoredObject, str] | None:
        """The object and the SHA-256 that it was put with ("" if by somebody else); None when
        there is none. Raises StoreError.
        """
        try:
            found = self._ask(f"look at {key}", self._client.head_object, **self._at(key))
        except MissingError:
            return None
        stored = StoredObject(key, found["ContentLength"], found["LastModified"])
        return stored, found["Metadata"].get(_SHA256, "")

    def list(self, prefix: str = "") -> "list[StoredObject]":
        """All objects whose keys begin so, sorted by key. Raises StoreError."""
        found: list[StoredObject] = []
        more: dict[str, Any] = {}
        while True:
            page = self._ask(
                f"list {prefix}",
                self._client.list_objects_v2,
                Bucket=self._place.bucket,
                Prefix=self._prefix + prefix,
                MaxKeys=_PAGE,
                **more,
            )
            found += [
                StoredObject(
                    item["Key"].removeprefix(self._prefix), item["Size"], item["LastModified"]
                )
                for item in page.get("Contents", [])
            ]
            if not page.get("IsTruncated"):
                return sorted(found, key=lambda item: item.key)
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def fetch(self, key: str, path: Path) -> None:
        """Write the object to `path`, which then is what was put, and until then is not there.

        Raises StoreError, and OSError when the file cannot be written.
        """
        head = self.head(key)
        if head is None:
            raise MissingError(f"{self}: there is no {key}")
        partial = path.with_name(f".{path.name}.part")
        try:
            with partial.open("wb") as file:
                found = self._read(key, file.write)
            if found != head[1]:
                raise AlteredError(f"{self}{key} is not what was put there (SHA-256 {found})")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def verify(self, key: str, expected: Path | str) -> None:
        """Read the object back and compare it with a file, or with a SHA-256 in hexadecimal.

        Raises AlteredError when it differs, StoreError when it cannot be read, and OSError when
        the file cannot.
        """
        wanted = expected if isinstance(expected, str) else sha256_of(expected)
        found = self._read(key, lambda _: None)
        if found != wanted:
            raise AlteredError(
                f"{self}{key} is not what it should be: its SHA-256 is {found} instead of {wanted}"
            )

    def remove(self, key: str) -> bool:
        """Remove the object; False when that is not allowed to us. Raises StoreError."""
        try:
            self._ask(f"remove {key}", self._client.delete_object, **self._at(key))
        except DeniedError:
            return False
        return True

    # -- how it is asked --------------------------------------------------------------------

    def _at(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._place.bucket, "Key": self._prefix + key}

    def _put_in_parts(
        self, parts: Iterable[bytes], key: str, storage_class: StorageClass, sha256: str
    ) -> None:
        doing = f"put {key}"
        begun = self._ask(
            doing,
            self._client.create_multipart_upload,
            **self._at(key),
            StorageClass=storage_class,
            Metadata={_SHA256: sha256},
        )
        upload = {**self._at(key), "UploadId": begun["UploadId"]}
        done: list[CompletedPartTypeDef] = []
        try:
            for number, part in enumerate(parts, start=1):
                answer = self._ask(
                    doing, self._client.upload_part, **upload, PartNumber=number, Body=part
                )
                done.append({"PartNumber": number, "ETag": answer["ETag"]})
            try:
                self._ask(
                    doing,
                    self._client.complete_multipart_upload,
                    **upload,
                    MultipartUpload={"Parts": done},
                )
            except MissingError:  # it was completed before, by an attempt whose answer was lost
                found = self.head(key)
                if found is None or found[1] != sha256:
                    raise
        except BaseException:
            # Else its parts cost until the bucket's rules end them; those of a killed process do.
            with suppress(*self._failures):
                self._client.abort_multipart_upload(**upload)
            raise

    def _read(self, key: str, sink: Callable[[bytes], object]) -> str:
        """Read the object, going on where a connection broke; its SHA-256."""
        digest = hashlib.sha256()
        done, failed, which = 0, 0, ""
        while True:
            before = done
            try:
                more: dict[str, Any] = {"Range": f"bytes={done}-", "IfMatch": which} if done else {}
                answer = self._client.get_object(**self._at(key), **more)
                which = answer["ETag"]
                whole = done + answer["ContentLength"]
                while chunk := answer["Body"].read(_READ_BYTES):
                    sink(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                if done == whole:
                    return digest.hexdigest()
                problem: Exception = EOFError(f"it ended after {done} of {whole} bytes")
            except self._failures as error:
                problem = error
            failed = 1 if done > before else failed + 1
            self._give_up_or_wait(f"read {key}", problem, failed)

    def _ask(self, doing: str, request: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The answer to the request, repeated while that may help. Raises StoreError."""
        failed = 0
        while True:
            try:
                return request(*args, **kwargs)
            except self._failures as error:
                failed += 1
                self._give_up_or_wait(doing, error, failed)

    def _give_up_or_wait(self, doing: str, error: Exception, failed: int) -> None:
        """Wait before the next attempt. Raises StoreError when there is to be none."""
        answer = getattr(error, "response", None)
        answer = answer if isinstance(answer, dict) else {}
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = answer.get("Error", {}).get("Code", "")
        said = " ".join(str(error).split()) or type(error).__name__
        sentence = f"{self}: could not {doing}: {said}"
        temporary = (
            not status  # there was no answer, or half of one
            or status >= HTTPStatus.INTERNAL_SERVER_ERROR
            or status in _FOR_A_WHILE
            or code in _FOR_A_WHILE_CODES
        )
        if status in _DENIED and not temporary:
            raise DeniedError(sentence) from error
        if status == HTTPStatus.NOT_FOUND and not temporary:
            raise MissingError(sentence) from error
        if not temporary:
            raise StoreError(sentence) from error
        if failed >= self._patience.attempts:
            raise StoreError(f"{sentence} (tried {failed} times)") from error
        time.sleep(self._patience.pause_s(failed))


def _connect(place: Place, patience: Patience) -> "tuple[S3Client, tuple[type[Exception], ...]]":
    """A client, and all that its requests raise when the storage fails."""
    # Half a second that only who asks the storage has to wait for.
    import boto3  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
    from botocore.parsers import ResponseParserError  # noqa: PLC0415

    config = Config(
        connect_timeout=patience.connect_s,
        read_timeout=patience.answer_s,
        retries={"total_max_attempts": 1},  # ours are enough
        # Not every storage knows AWS's newer checksums; ours cover the whole way.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # A storage of one's own seldom has a name for each bucket.
        s3={"addressing_style": "path" if place.endpoint else "auto"},
    )
    try:
        # Without a session of its own, it would look for credentials in files and on the network.
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=place.endpoint or None,
            region_name=place.region,
            aws_access_key_id=place.access_key_id,
            aws_secret_access_key=place.secret,
            config=config,
        )
    except (BotoCoreError, ValueError) as error:
        raise StoreError(f"s3://{place.bucket}: {error}") from error
    return client, (BotoCoreError, ClientError, ResponseParserError)
