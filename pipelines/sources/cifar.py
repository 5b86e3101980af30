"""The official CIFAR-10 and CIFAR-100 archives, python and binary versions, packed (tar, tar.gz, zip) or unpacked.

The python version is made of pickles. They are read by an unpickler that knows arrays, lists, dictionaries and strings and
refuses everything else, so that an archive from somewhere can not run code. Pixels are stored as PNG, without loss.
As published, validation images are the last of the training images.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ghn.errors import InputError
from pipelines.sources.files import Files
from pipelines.sources.listing import SPLITS, Listing

_Load = Callable[[], bytes]
_PIXELS = 32 * 32 * 3


class _Version(NamedTuple):
    """File names of one version: training, test, class names; and label bytes in front of each binary record."""

    train: tuple[str, ...]
    test: str
    classes: str
    label_bytes: int = 0


_TEN = tuple(f"data_batch_{i}" for i in range(1, 6))
_VERSIONS = (
    _Version(_TEN, "test_batch", "batches.meta"),
    _Version(("train",), "test", "meta"),
    _Version(tuple(f"{name}.bin" for name in _TEN), "test_batch.bin", "batches.meta.txt", 1),
    _Version(("train.bin",), "test.bin", "fine_label_names.txt", 2),
)
_KNOWN_FILES = frozenset(name for version in _VERSIONS for name in (*version.train, version.test, version.classes))
_KNOWN_TYPES = {"u1": "u1", "i4": "<i4", "i8": "<i8"}


class _Dtype:
    """Stands for ``numpy.dtype``, whose own pickled state could describe memory that is not there."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name = _KNOWN_TYPES[name]

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("|", "<"):
            raise pickle.UnpicklingError(f"an array has the byte order {state[1]!r}")


class _Array:
    """Stands for ``numpy.ndarray``: the array is made from its bytes."""

    values: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        content = raw.encode("latin1") if isinstance(raw, str) else raw
        if fortran or not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError("an array is of an unknown kind")
        self.values = np.frombuffer(content, dtype=dtype.name).reshape(shape)


def _latin1(text: str, *_: Any) -> bytes:
    return text.encode("latin1")


_KNOWN_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
}


class _DataUnpickler(pickle.Unpickler):
    """Arrays and plain data only; nothing that is named in a pickle is ever imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no data")
        return _KNOWN_GLOBALS[module, name]


def find_cifar(path: Path, files: Files | None) -> dict[str, _Load] | None:
    """Return how to read each of the archive's known files if this is a CIFAR archive, else ``None``.

    Args:
        path: of a tar, or of a folder or zip.
        files: the same as a folder or zip, if it is one.

    """
    found: dict[str, _Load]
    if files is not None:
        members = {name.rpartition("/")[2]: name for name in files.names}
        found = {known: partial(files.read, members[known]) for known in _KNOWN_FILES & members.keys()}
    else:
        found = _tar_members(path)
    complete = any({*version.train, version.test, version.classes} <= found.keys() for version in _VERSIONS)
    return found if complete else None


def _tar_members(path: Path) -> dict[str, _Load]:
    try:
        with tarfile.open(path) as archive:
            content = {}
            for member in archive:
                name = Path(member.name).name
                stream = archive.extractfile(member) if name in _KNOWN_FILES and member.isreg() else None
                if stream is not None:
                    content[name] = stream.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"image source {path.name} is not a readable tar: {error}") from error
    return {name: partial(bytes, data) for name, data in content.items()}


def list_cifar(path: Path, members: dict[str, _Load]) -> Listing:
    """List the images of an archive; all pixels are kept in memory (180 MB).

    Raises:
        InputError: if a file is damaged, or a pickle holds anything but data.

    """
    version = next(v for v in _VERSIONS if {*v.train, v.test, v.classes} <= members.keys())
    read = _read_binary if version.label_bytes else _read_pickle
    names: list[str] = []
    pixels, labels, given = [], [], []
    for split, files in (("train", version.train), ("test", (version.test,))):
        for name in files:
            part, part_labels = read(f"{path.name}: {name}", _content(path, members, name), version)
            names += [f"{name}/{i:05d}" for i in range(len(part))]
            pixels.append(part)
            labels.append(part_labels)
            given.append(np.full(len(part), SPLITS.index(split), dtype=np.int8))
    classes = _read_classes(f"{path.name}: {version.classes}", _content(path, members, version.classes), version)
    all_labels = np.concatenate(labels).astype(np.int32)
    if not len(all_labels) or all_labels.max() >= len(classes):
        raise InputError(f"{path.name} has labels that its {len(classes)} class names do not cover; fetch it again")
    all_pixels = np.concatenate(pixels)

    def load(i: int) -> tuple[bytes, str]:
        from PIL import Image

        stream = io.BytesIO()
        planes = all_pixels[i].reshape(3, 32, 32)
        Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))).save(stream, format="PNG")
        return stream.getvalue(), "png"

    return Listing(
        name=path.name,
        names=names,
        labels=all_labels,
        given=np.concatenate(given),
        classes=classes,
        load=load,
        validation="last",
    )


def _content(path: Path, members: dict[str, _Load], name: str) -> bytes:
    try:
        return members[name]()
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name}: {name} can not be read: {error}; fetch the archive again") from error


def _unpickle(where: str, content: bytes) -> dict[str, Any]:
    try:
        data = _DataUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can fail in any way
        raise InputError(f"{where} can not be read: {error}; fetch the archive again") from error
    if not isinstance(data, dict):
        raise InputError(f"{where} can not be read: it holds no dictionary; fetch the archive again")
    return data


def _read_pickle(where: str, content: bytes, version: _Version) -> tuple[np.ndarray, np.ndarray]:
    data = _unpickle(where, content)
    pixels, labels = (
        value.values if isinstance(value, _Array) else value
        for value in (data.get("data"), data.get("labels", data.get("fine_labels")))
    )
    if isinstance(labels, list) and all(type(label) is int and 0 <= label < 1000 for label in labels):
        labels = np.array(labels, dtype=np.int64)
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or not ((labels >= 0) & (labels < 1000)).all():
        raise InputError(f"{where} can not be read: it holds no list of labels; fetch the archive again")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (len(labels), _PIXELS):
        raise InputError(f"{where} can not be read: no {_PIXELS} bytes for each label; fetch the archive again")
    return pixels, labels


def _read_binary(where: str, content: bytes, version: _Version) -> tuple[np.ndarray, np.ndarray]:
    length = version.label_bytes + _PIXELS
    if not content or len(content) % length:
        raise InputError(f"{where} can not be read: {len(content)} bytes are no records of {length}; fetch it again")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, length)
    return records[:, version.label_bytes :], records[:, version.label_bytes - 1]  # of CIFAR-100's labels the fine one


def _read_classes(where: str, content: bytes, version: _Version) -> tuple[str, ...]:
    if version.label_bytes:
        return tuple(line.strip() for line in content.decode(errors="replace").splitlines() if line.strip())
    data = _unpickle(where, content)
    names = data.get("label_names", data.get("fine_label_names"))
    if not isinstance(names, list):
        raise InputError(f"{where} can not be read: it holds no class names; fetch the archive again")
    return tuple(str(name) for name in names)
