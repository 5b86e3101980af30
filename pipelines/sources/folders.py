"""Folders and zips with one folder for each class, perhaps below ``train``, ``val`` and ``test``."""

from __future__ import annotations

import numpy as np

from ghn.errors import InputError
from pipelines.sources.files import Files
from pipelines.sources.images import EXTENSIONS
from pipelines.sources.listing import SPLITS, UNASSIGNED, Listing

_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def extension(name: str) -> str:
    """Return a file name's extension in small letters, without the dot."""
    return name.rpartition("/")[2].rpartition(".")[2].lower()


def list_folders(files: Files) -> Listing:
    """List the images of class folders.

    Raises:
        InputError: if there are no images, one lies in no class folder, a class folder is empty, or there is one class.

    """
    source = files.path.name
    images = [name for name in files.names if extension(name) in EXTENSIONS]
    if not images:
        raise InputError(f"image source {source} holds no images ({', '.join(sorted(EXTENSIONS))}) in class folders")
    around = _folder_around(images)
    found = [_place(name, around, source) for name in images]
    _check_empty(files, around, {(split, name) for split, name in found})
    classes = tuple(sorted({name for _, name in found}))
    if len(classes) < 2:
        raise InputError(f"image source {source} has one class folder ({classes[0]!r}); at least two are needed")
    number = {name: i for i, name in enumerate(classes)}
    splits = {name: i for i, name in enumerate(SPLITS)} | {"": UNASSIGNED}
    return Listing(
        name=source,
        names=images,
        labels=np.array([number[name] for _, name in found], dtype=np.int32),
        given=np.array([splits[split] for split, _ in found], dtype=np.int8),
        classes=classes,
        load=lambda i: (files.read(images[i]), extension(images[i])),
    )


def _folder_around(images: list[str]) -> str:
    """Return the path of folders that hold everything (with a ``/`` at the end), which are no class or split."""
    around = ""
    while True:
        first = {name[len(around) :].partition("/")[0] for name in (images[0], images[-1])}  # the names are sorted
        inner = images[0][len(around) :]
        if len(first) > 1 or inner.count("/") < 2 or next(iter(first)).lower() in _SPLIT_NAMES:
            return around
        around += f"{first.pop()}/"


def _place(name: str, around: str, source: str) -> tuple[str, str]:
    """Return an image's split ("" if none) and class."""
    parts = name[len(around) :].split("/")
    split = _SPLIT_NAMES.get(parts[0].lower(), "") if len(parts) > 2 else ""
    inner = parts[1:] if split else parts
    if len(inner) < 2:
        raise InputError(f"image {name} in {source} lies in no class folder; use <class>/<image>")
    return split, inner[0]


def _check_empty(files: Files, around: str, known: set[tuple[str, str]]) -> None:
    """Raise for a class folder without images: dropping it in silence would shift the numbers of other classes."""
    beside = {split for split, _ in known}
    holding = {tuple(name[len(around) :].split("/")[:-1]) for name in files.names if name.startswith(around)}
    folders = {tuple(name[len(around) :].split("/")) for name in files.folders if name.startswith(around)} | holding
    for parts in sorted(folders):
        split = _SPLIT_NAMES.get(parts[0].lower(), "") if parts else ""
        inner = parts[1:] if split else parts
        if len(inner) == 1 and split in beside and (split, inner[0]) not in known:
            path = f"{around}{'/'.join(parts)}"
            raise InputError(f"class folder {path} in {files.path.name} holds no images; remove it, or add its images")
