"""A folder and a zip as the same thing: file names, and how to read one. Nothing is ever extracted."""

from __future__ import annotations

import os
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
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:  # damaged, encrypted, unknown method
            raise ValueError(str(error)) from error

    def _zip_names(self) -> Iterator[str]:
        if self._archive is None:
            return
        for position, member in enumerate(self._archive.filelist):
            name = member.filename.replace("\\", "/")
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
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"image source {path.name} is not a readable zip: {error}") from error


def _folder_names(root: Path) -> Iterator[str]:
    """Yield all files, and all folders with a ``/`` at the end; symbolic links to folders are followed."""
    pending, seen = [""], set()
    while pending:
        prefix = pending.pop()
        try:
            real = os.path.realpath(root / prefix)
            if real in seen:
                continue
            seen.add(real)
            entries = list(os.scandir(root / prefix))
        except OSError as error:
            raise InputError(f"can not list {root / prefix}: {error.strerror}") from error
        for entry in entries:
            if entry.is_dir():
                pending.append(f"{prefix}{entry.name}/")
                yield f"{prefix}{entry.name}/"
            elif entry.is_file():
                yield f"{prefix}{entry.name}"
