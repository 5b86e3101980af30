"""What every store can do. Objects are written whole or not at all."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence


class Store(ABC):
    """Objects below one root; keys are relative paths with ``/``. Safe to use from several threads."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")

    def url(self, key: str = "") -> str:
        """Return the full address of a key."""
        return f"{self.root}/{key}" if key else self.root

    @abstractmethod
    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return an object's content, or its bytes from ``start`` up to ``stop``.

        Raises:
            FileNotFoundError: if there is no such object.
            StorageError: if the store can not be used.

        """

    def read_hashed(self, key: str) -> tuple[memoryview, str]:
        """Return an object's content and its SHA-256 in hexadecimal digits; errors as in :meth:`read`."""
        content = self.read(key)
        return memoryview(content), hashlib.sha256(content).hexdigest()

    @abstractmethod
    def write(self, key: str, content: bytes, sha256: str | None = None) -> None:
        """Write an object; it appears whole or not at all, and replaces an older one.

        ``sha256`` is the content's, in hexadecimal digits, where the caller knows it.

        Raises:
            StorageError: if the store can not be used or is full.

        """

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Return an object's size in bytes, ``None`` if there is none."""

    @abstractmethod
    def list(self, prefix: str = "") -> Sequence[str]:
        """Return all keys that begin with ``prefix``, sorted."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; missing ones are fine."""

    @abstractmethod
    def remove_unfinished(self) -> int:
        """Remove what writers that were killed left behind (no object is); return how many things.

        Call it only when nobody writes below this root.
        """
