"""Objects on S3, by boto3, against any server that speaks the protocol.

Large objects are uploaded in parts, which S3 puts together only when all are there, so an upload that breaks off leaves no
object. All content is sent with its SHA-256. Transient failures are tried again, with growing pauses, until a deadline;
a download that breaks off goes on where it stopped.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from ghn.errors import StorageError
from pipelines.progress import emit
from pipelines.storage.settings import StorageSettings
from pipelines.storage.store import Store

_CONNECT_TIMEOUT_S = 5
_READ_TIMEOUT_S = 60
_FIRST_DEADLINE_S = 8.0  # before the store has answered once: most likely its address is wrong
_LONGEST_PAUSE_S = 15.0
_CHUNK = 1 << 20
_HASHED_CHUNK = 1 << 18  # still in the core's cache when it is hashed and copied
_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
_TRANSIENT = frozenset({"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "OperationAborted"})
_T = TypeVar("_T")
_CLIENTS: dict[Any, Any] = {}
_CLIENTS_LOCK = threading.Lock()


class S3Store(Store):
    """A prefix in a bucket.

    Args:
        root: ``s3://bucket/prefix``.
        settings: default: those of the environment.

    """

    def __init__(self, root: str, settings: StorageSettings | None = None) -> None:
        super().__init__(root)
        self.bucket, _, prefix = self.root.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self.settings = settings or StorageSettings.from_environment()
        self._answered = False

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "settings": self.settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"], state["settings"])  # type: ignore[misc]

    @property
    def client(self) -> Any:
        """The boto3 client of this process, with the credentials of the moment when it was first needed."""
        return _client(self.settings)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        chunks: list[bytes] = []
        if stop is None or stop > start:
            self._download(key, lambda chunk, _: chunks.append(chunk), start, stop)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def read_hashed(self, key: str) -> tuple[memoryview, str]:
        """Hash the content as it arrives: behind it, the connection would be idle for as long as that takes."""
        content, held, digest = bytearray(), 0, hashlib.sha256()

        def take(chunk: bytes, size: int) -> None:
            nonlocal content, held
            content = content or bytearray(size)
            content[held : held + len(chunk)] = chunk
            held += len(chunk)
            digest.update(chunk)

        self._download(key, take, chunk=_HASHED_CHUNK)
        return memoryview(content), digest.hexdigest()

    def _download(
        self,
        key: str,
        take: Callable[[bytes, int], None],
        start: int = 0,
        stop: int | None = None,
        chunk: int | None = None,
    ) -> None:
        """Give content to ``take``, together with the size of all of it; a download that breaks off goes on."""
        position, total, tag, broke_off = start, 0, "", False

        def download() -> None:
            nonlocal position, total, tag, broke_off
            more: dict[str, str] = {}
            if position or stop is not None:
                more["Range"] = f"bytes={position}-{'' if stop is None else stop - 1}"
            if tag and position > start:
                more["IfMatch"] = tag  # the rest of the same object, not of another one
            answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key, **more)
            tag, total = answer.get("ETag", ""), position - start + answer["ContentLength"]
            # In one piece at first: joining chunks costs a fifth of the speed. Whoever breaks off once, may again.
            size, broke_off = (_CHUNK if broke_off else chunk), True
            while content := answer["Body"].read(size):
                position += len(content)
                take(content, total)

        self._persist(key, download, progress=lambda: position)

    def write(self, key: str, content: bytes, sha256: str | None = None) -> None:
        part = self.settings.s3_part_mib << 20
        if len(content) <= part:
            digest = bytes.fromhex(sha256) if sha256 else hashlib.sha256(content).digest()
            checksum = base64.b64encode(digest).decode()
            self._call("put_object", key, Key=self.prefix + key, Body=content, ChecksumSHA256=checksum)
            return
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(
            multipart_threshold=part, multipart_chunksize=part, max_concurrency=self.settings.s3_parallel
        )

        def upload() -> None:
            self.client.upload_fileobj(
                io.BytesIO(content),
                self.bucket,
                self.prefix + key,
                ExtraArgs={"ChecksumAlgorithm": "SHA256"},
                Config=config,
            )

        self._persist(key, upload)

    def size(self, key: str) -> int | None:
        missing = False
        try:
            return self._head(key)
        except FileNotFoundError:
            missing = True
        except StorageError as error:
            if error.__cause__ is None or _code(error.__cause__) not in ("400", "403"):
                raise
        # Answers to HEAD have no body: a listing says whether it is the bucket, the credentials or the key.
        self._call("list_objects_v2", key, Prefix=self.prefix + key, MaxKeys=1)
        return None if missing else self._head(key)

    def _head(self, key: str) -> int:
        size: int = self._call("head_object", key, Key=self.prefix + key)["ContentLength"]
        return size

    def list(self, prefix: str = "") -> Sequence[str]:
        return sorted(
            item["Key"].removeprefix(self.prefix)
            for page in self._pages("list_objects_v2", prefix, {"ContinuationToken": "NextContinuationToken"})
            for item in page.get("Contents", ())
        )

    def delete(self, key: str) -> None:
        self._call("delete_object", key, Key=self.prefix + key)

    def remove_unfinished(self) -> int:
        """Abort uploads in parts that were never completed."""
        following = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        try:
            left = [
                (item["Key"], item["UploadId"])
                for page in self._pages("list_multipart_uploads", "", following)
                for item in page.get("Uploads", ())
                if item["Key"].startswith(self.prefix)  # some servers take no notice of the prefix
            ]
            for name, upload in left:
                self._call("abort_multipart_upload", name, Key=name, UploadId=upload)
        except (
            StorageError,
            FileNotFoundError,
        ):  # not every server lists uploads, nor every role may; or they are gone
            return 0
        return len(left)

    def _pages(self, operation: str, prefix: str, following: dict[str, str]) -> Iterator[dict[str, Any]]:
        markers: dict[str, str] = {}
        while True:
            page = self._call(operation, prefix, Prefix=self.prefix + prefix, **markers)
            yield page
            if not page.get("IsTruncated"):
                return
            markers = {ours: page[theirs] for ours, theirs in following.items() if page.get(theirs)}

    def _call(self, operation: str, key: str, **arguments: Any) -> Any:
        return self._persist(key, lambda: getattr(self.client, operation)(Bucket=self.bucket, **arguments))

    def _persist(self, key: str, attempt: Callable[[], _T], progress: Callable[[], int] = int) -> _T:
        """Try until it works, the failure is final, or the deadline has passed; say what went wrong in our own terms.

        The deadline counts from the first failure, and anew from a failure behind which ``progress`` is larger than before.
        """
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
        from tenacity import Retrying, retry_if_exception, wait_exponential_jitter

        failing_since, reached = 0.0, -1

        def is_late(state: Any) -> bool:
            nonlocal failing_since, reached
            if progress() > reached:
                failing_since, reached = time.monotonic(), progress()
            deadline = self.settings.s3_deadline_s
            if not self._answered and _client_error(state.outcome.exception()) is None:
                deadline = min(deadline, _FIRST_DEADLINE_S)
            return time.monotonic() - failing_since >= deadline

        retrying = Retrying(
            stop=is_late,
            wait=wait_exponential_jitter(initial=0.2, max=_LONGEST_PAUSE_S, jitter=0.2),
            retry=retry_if_exception(_is_transient),
            before_sleep=lambda state: _tell(self.url(key), state),
            reraise=True,
        )
        try:
            try:
                result = retrying(attempt)
            except (ClientError, Boto3Error) as error:
                if _code(error) not in _EXPIRED:
                    raise
                with _CLIENTS_LOCK:
                    _CLIENTS.clear()  # credentials may have been renewed where they come from
                result = retrying(attempt)
        except (ClientError, Boto3Error) as error:
            raise self._explained(key, error) from error
        except BotoCoreError as error:
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
            reason = str(error).rstrip(".")
            raise StorageError(
                f"{self.url(key)}: can not use the object store at {endpoint}: {reason}; "
                "check AWS_ENDPOINT_URL, the network and the credentials"
            ) from error
        self._answered = True
        return result

    def _explained(self, key: str, error: Exception) -> Exception:
        code = _code(error)
        if code in _MISSING:
            return FileNotFoundError(self.url(key))
        if code == "NoSuchBucket":
            return StorageError(f"{self.url(key)}: bucket {self.bucket!r} does not exist; create it first")
        if code in _EXPIRED:
            return StorageError(
                f"{self.url(key)}: the credentials have expired; renew them and run the same command again: "
                "what was finished is kept"
            )
        response = getattr(_client_error(error), "response", {}).get("Error", {})
        return StorageError(
            f"{self.url(key)}: the store answered {code or 'with an error'}: {response.get('Message') or error}; "
            "check the credentials, the bucket policy and the space"
        )


def _client(settings: StorageSettings) -> Any:
    """Return the client for these settings and the present environment; making one takes half a second of a core."""
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    key = (os.getpid(), settings, environment)  # connections do not survive a fork
    with _CLIENTS_LOCK:
        if key not in _CLIENTS:
            import boto3
            from botocore.config import Config

            config = Config(
                connect_timeout=_CONNECT_TIMEOUT_S,
                read_timeout=_READ_TIMEOUT_S,
                retries={"mode": "standard", "total_max_attempts": 1},  # tried again here, up to a deadline
                max_pool_connections=8 * settings.s3_parallel,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": settings.s3_addressing},
            )
            _CLIENTS[key] = boto3.session.Session().client("s3", config=config)
        return _CLIENTS[key]


def _client_error(error: BaseException | None) -> Any:
    """Return the answer of the store behind an error, if there is one (uploads in parts wrap it)."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import ClientError

    if isinstance(error, Boto3Error):
        error = error.__cause__ or error.__context__
    return error if isinstance(error, ClientError) else None


def _code(error: BaseException) -> str:
    answer = _client_error(error)
    return str(answer.response.get("Error", {}).get("Code", "")) if answer is not None else ""


def _is_transient(error: BaseException) -> bool:
    from botocore import exceptions as ex

    answer = _client_error(error)
    if answer is not None:
        status = answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429 or _code(error) in _TRANSIENT
    return isinstance(error, (ex.HTTPClientError, ex.ConnectionError, ex.IncompleteReadError))


def _tell(url: str, state: Any) -> None:
    failure = state.outcome.exception()
    emit(
        "retry", object=url, attempt=state.attempt_number, wait_s=round(state.next_action.sleep, 2), reason=str(failure)
    )
