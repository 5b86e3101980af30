"""A cache on local disk of content that is named by its SHA-256, so that it can never be stale.

Several processes may share one folder. What was used last is kept; the size limit holds after every write.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import threading
import time
from pathlib import Path

from pipelines.progress import emit
from pipelines.storage.settings import StorageSettings

_ABANDONED_S = 3600.0
_CONTENT = re.compile(r"[0-9a-f]{64}")
_UNFINISHED = re.compile(r"\.[0-9a-f]{64}\.[0-9a-f]{12}\.tmp")


class ReadCache:
    """Content by its SHA-256.

    Args:
        folder: made when first needed.
        limit: most bytes that the folder may hold.

    """

    def __init__(self, folder: str | os.PathLike[str], limit: int) -> None:
        self.folder, self.limit = Path(folder), limit
        self.hits = self.misses = 0
        self._lock = threading.Lock()

    @classmethod
    def configured(cls) -> ReadCache | None:
        """Return the cache that ``GHN_CACHE`` names, if any."""
        settings = StorageSettings.from_environment()
        return cls(settings.cache, int(settings.cache_gib * 2**30)) if settings.cache else None

    def get(self, sha256: str) -> bytes | None:
        """Return the content, ``None`` if it is not there (a damaged file is removed)."""
        file = self.folder / sha256
        try:
            content = file.read_bytes()
            os.utime(file)
        except OSError:
            self.misses += 1
            return None
        if hashlib.sha256(content).hexdigest() != sha256:
            with contextlib.suppress(OSError):
                file.unlink()
            self.misses += 1
            return None
        self.hits += 1
        return content

    def put(self, sha256: str, content: bytes | memoryview) -> None:
        """Keep content that has this SHA-256. A full disk costs the cache, not the job: it is reported and that is all."""
        if len(content) > self.limit:
            return
        temporary = self.folder / f".{sha256}.{secrets.token_hex(6)}.tmp"
        try:
            with self._lock:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._make_room(len(content))
                temporary.write_bytes(content)
                temporary.replace(self.folder / sha256)
                self._make_room(0)  # another process may have written, too
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            emit("cache", problem=f"can not write to {self.folder}: {error.strerror}")

    def _make_room(self, wanted: int) -> None:
        files = []
        for file in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                facts = file.stat()
                if _CONTENT.fullmatch(file.name):  # what has another name is not the cache's
                    files.append((facts.st_mtime_ns, facts.st_size, file))
                elif _UNFINISHED.fullmatch(file.name) and time.time() - facts.st_mtime > _ABANDONED_S:
                    file.unlink()  # left by a process that was killed
        held = sum(size for _, size, _ in files)
        for _, size, file in sorted(files):
            if held + wanted <= self.limit:
                return
            file.unlink(missing_ok=True)
            held -= size
