"""A folder and a zip as the same thing: file names, and how to read one. Nothing is ever extracted."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from ghn.errors import InputError


class Files:
    """The files of a folder or zip, by their relative names with ``/``.

    Hidden files, and what archivers add beside the real ones, are left out.

    Args:
        path: of the folder or zip.

    Raises:
        InputError: if it is neither, can not be read, or a zip holds a name that is unsafe or occurs twice.

    Attributes:
        names: sorted.
        folders: names of folders that hold no file at any depth, sorted.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = _open_zip(path) if path.is_file() else None
        self._members: dict[str, int] = {}
        names, folders = [], set()
        for name in self._zip_names() if self._archive else _folder_names(path):
            _check_encodable(name, path.name)
            if any(part.startswith(".") or part == "__MACOSX" for part in name.split("/")):
                continue
            if name.endswith("/"):
                folders.add(name.rstrip("/"))
            else:
                names.append(name)
        self.names = sorted(names)
        for name in self.names if folders else ():
            while "/" in name:
                name = name.rpartition("/")[0]
                folders.discard(name)
        self.folders = sorted(folders)

    def read(self, name: str) -> bytes:
        """Return the content of a file; ``OSError`` or ``ValueError`` if it can not be read."""
        if self._archive is None:
            return (self.path / name).read_bytes()
        try:
            return self._archive.read(self._archive.filelist[self._members[name]])
        except Exception as error:  # damaged, encrypted, of an unknown method: each fails in its own way
            raise ValueError(str(error) or type(error).__name__) from error

    def _zip_names(self) -> Iterator[str]:
        if self._archive is None:
            return
        for position, member in enumerate(self._archive.filelist):
            name = re.sub(r"(^|/)(\./)+", r"\1", member.filename.replace("\\", "/"))
            if name.startswith("/") or ".." in name.split("/") or (len(name) > 1 and name[1] == ":"):
                raise InputError(
                    f"{self.path.name} holds the unsafe name {name!r} (it points out of the archive); make the zip again"
                )
            if name in self._members:
                raise InputError(
                    f"{self.path.name} holds two members named {name!r}; make the zip again with unique names"
                )
            self._members[name] = position
            yield name


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise InputError(f"image source {path.name} is not a readable zip: {error}") from error


def _folder_names(root: Path) -> Iterator[str]:
    """Yield all files, and all folders with a ``/`` at the end; symbolic links to folders are followed."""
    pending: list[tuple[str, frozenset[str]]] = [("", frozenset())]
    while pending:
        prefix, above = pending.pop()
        above |= {os.path.realpath(root / prefix)}
        try:
            entries = list(os.scandir(root / prefix))
        except OSError as error:
            raise InputError(f"can not list {root / prefix}: {error.strerror}") from error
        for entry in entries:
            if entry.is_dir():
                if entry.is_symlink() and os.path.realpath(entry.path) in above:  # a link to a folder that it lies in
                    continue
                pending.append((f"{prefix}{entry.name}/", above))
                yield f"{prefix}{entry.name}/"
            elif entry.is_file():
                yield f"{prefix}{entry.name}"


def _check_encodable(name: str, source: str) -> None:
    """Raise for a name that is no Unicode text: no manifest could hold it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{source} holds the name {name!r}, which is not UTF-8; rename it") from None
