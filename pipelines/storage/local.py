"""Objects as files below a folder."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from ghn.errors import InputError, StorageError
from pipelines.storage.store import Store

_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")


class LocalStore(Store):
    """A folder; writes go to a temporary file that is then renamed."""

    def _path(self, key: str) -> Path:
        if key.startswith("/") or ".." in key.split("/"):
            raise InputError(f"{key!r} would lie outside of {self.root}")
        return Path(self.root, key)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        try:
            with self._path(key).open("rb") as stream:
                stream.seek(start)
                return stream.read(-1 if stop is None else max(0, stop - start))
        except (IsADirectoryError, NotADirectoryError) as error:
            raise FileNotFoundError(key) from error
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(f"can not read {self.url(key)}: {error.strerror}") from error

    def write(self, key: str, content: bytes, sha256: str | None = None) -> None:
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise StorageError(
                f"can not write {self.url(key)}: {error.strerror}; what was written before is kept: mend it and run "
                "the same command again"
            ) from error

    def size(self, key: str) -> int | None:
        path = self._path(key)
        try:
            return path.stat().st_size if path.is_file() else None
        except OSError as error:
            raise StorageError(f"can not look at {self.url(key)}: {error.strerror}") from error

    def list(self, prefix: str = "") -> Sequence[str]:
        root = Path(self.root)
        return sorted(
            key
            for path in self._files()
            if (key := path.relative_to(root).as_posix()).startswith(prefix) and not _is_unfinished(path)
        )

    def delete(self, key: str) -> None:
        path = self._path(key)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"can not remove {self.url(key)}: {error.strerror}") from error
        with contextlib.suppress(OSError):  # as with object stores, there are no empty folders
            for _ in key.split("/")[1:]:
                path = path.parent
                path.rmdir()

    def remove_unfinished(self) -> int:
        left = [path for path in self._files() if _is_unfinished(path)]
        for path in left:
            path.unlink(missing_ok=True)
        return len(left)

    def _files(self) -> Iterator[Path]:
        for folder, _, names in os.walk(self.root):
            yield from (Path(folder, name) for name in names)


def _is_unfinished(path: Path) -> bool:
    return _UNFINISHED.fullmatch(path.name) is not None
