"""From an address to its store."""

from __future__ import annotations

from ghn.errors import InputError
from pipelines.storage.local import LocalStore
from pipelines.storage.s3 import S3Store
from pipelines.storage.store import Store


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
