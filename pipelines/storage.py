"""One interface for local folders and S3: small objects in, small objects out, written whole or not at all.

``AWS_ENDPOINT_URL``, the standard credential variables and files, and regions work as boto3 defines them.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ghn.errors import InputError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_CONNECT_TIMEOUT_S = 5
_READ_TIMEOUT_S = 60
_MAX_ATTEMPTS = 4


class Store(ABC):
    """Objects below one root; keys are relative paths with ``/``."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")

    def url(self, key: str = "") -> str:
        """Return the full address of a key."""
        return f"{self.root}/{key}" if key else self.root

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Return an object's content; ``FileNotFoundError`` if there is none."""

    @abstractmethod
    def write(self, key: str, content: bytes) -> None:
        """Write an object; it appears whole or not at all."""

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Return an object's size in bytes, ``None`` if there is none."""

    @abstractmethod
    def list(self, prefix: str = "") -> Sequence[str]:
        """Return all keys that begin with ``prefix``, sorted."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; missing ones are fine."""


def open_store(url: str) -> Store:
    """Open ``s3://bucket/prefix`` or a local folder.

    Raises:
        InputError: for another scheme or an S3 address without a bucket.

    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return LocalStore(url)
    if scheme == "file":
        return LocalStore(rest)
    if scheme != "s3":
        raise InputError(f"{url}: unknown scheme {scheme!r}; use s3://bucket/prefix or a path")
    if not rest.strip("/") or rest.startswith("/"):
        raise InputError(f"{url}: names no bucket; use s3://bucket/prefix")
    return S3Store(url)


class LocalStore(Store):
    """A folder; writes go to a temporary file that is then renamed."""

    def _path(self, key: str) -> Path:
        return Path(self.root, key)

    def read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except IsADirectoryError as error:
            raise FileNotFoundError(key) from error
        except PermissionError as error:
            raise StorageError(f"{self.url(key)}: permission denied") from error

    def write(self, key: str, content: bytes) -> None:
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StorageError(f"can not write {self.url(key)}: {error.strerror}") from error

    def size(self, key: str) -> int | None:
        path = self._path(key)
        return path.stat().st_size if path.is_file() else None

    def list(self, prefix: str = "") -> Sequence[str]:
        root = Path(self.root)
        files = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        return sorted(key for key in files if key.startswith(prefix))

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)


class S3Store(Store):
    """A prefix in a bucket. Uploads are single ``PutObject`` calls, which S3 makes visible only when complete."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.bucket, _, prefix = self.root.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        self._client: Any = None

    @property
    def client(self) -> Any:
        """The boto3 client (made on first use)."""
        if self._client is None:
            import boto3
            from botocore.config import Config

            config = Config(
                connect_timeout=_CONNECT_TIMEOUT_S,
                read_timeout=_READ_TIMEOUT_S,
                retries={"mode": "standard", "total_max_attempts": _MAX_ATTEMPTS},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            )
            self._client = boto3.session.Session().client("s3", config=config)  # credentials as they are now
        return self._client

    def _call(self, operation: str, key: str, **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self.client, operation)(Bucket=self.bucket, **arguments)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "?")
            if code in ("404", "NoSuchKey", "NotFound"):
                raise FileNotFoundError(self.url(key)) from error
            if code == "NoSuchBucket":
                raise StorageError(
                    f"{self.url(key)}: bucket {self.bucket!r} does not exist; create it first"
                ) from error
            raise StorageError(
                f"{self.url(key)}: the store answered {code}: {error.response['Error'].get('Message')}; "
                "check the credentials and the bucket policy"
            ) from error
        except BotoCoreError as error:
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
            reason = str(error).rstrip(".")
            raise StorageError(
                f"{self.url(key)}: can not use the object store at {endpoint}: {reason}; "
                "check AWS_ENDPOINT_URL, the network and the credentials"
            ) from error

    def read(self, key: str) -> bytes:
        from botocore.exceptions import BotoCoreError

        try:
            content: bytes = self._call("get_object", key, Key=self.prefix + key)["Body"].read()
        except BotoCoreError as error:
            raise StorageError(f"{self.url(key)}: the download broke off: {error}") from error
        return content

    def write(self, key: str, content: bytes) -> None:
        self._call("put_object", key, Key=self.prefix + key, Body=content)

    def size(self, key: str) -> int | None:
        try:
            size: int = self._call("head_object", key, Key=self.prefix + key)["ContentLength"]
        except FileNotFoundError:
            # A missing bucket answers a bare 404 here too; a listing tells the two apart.
            self._call("list_objects_v2", key, Prefix=self.prefix + key, MaxKeys=1)
            return None
        return size

    def list(self, prefix: str = "") -> Sequence[str]:
        return sorted(self._pages(prefix))

    def _pages(self, prefix: str) -> Iterator[str]:
        token: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", prefix, Prefix=self.prefix + prefix, **token)
            yield from (item["Key"].removeprefix(self.prefix) for item in page.get("Contents", ()))
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        self._call("delete_object", key, Key=self.prefix + key)
