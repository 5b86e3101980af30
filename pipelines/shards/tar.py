"""Tars in memory: write samples, and read them.

Times, owners and modes are fixed, so that equal samples are equal bytes.

For shards of small files webdataset's stream reader takes longer than decoding an image; here members are sliced out of the
bytes. Archives with anything but plain files and short names are left to webdataset.
"""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

_BLOCK = 512
_HEADER = struct.Struct(
    "100s 24x 11s 21x 1s 188x 1s"
)  # name, size in octal digits, kind, first byte of the name's prefix
_PLAIN = (b"0", b"\0")  # kinds of a regular file


def write_samples(samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> bytes:
    """Return a tar of samples, each a key and its fields by extension; equal samples give equal bytes."""
    chunks, size = [], 0
    for key, fields in samples:
        for extension, content in sorted(fields.items()):
            member = tarfile.TarInfo(f"{key}.{extension}")
            member.size, member.mode, member.uname, member.gname = len(content), 0o644, "ghn", "ghn"
            chunks += [member.tobuf(tarfile.USTAR_FORMAT), content, bytes(-len(content) % _BLOCK)]
            size += _BLOCK + len(content) + len(chunks[-1])
    size += 2 * _BLOCK
    return b"".join([*chunks, bytes(2 * _BLOCK + -size % tarfile.RECORDSIZE)])


class Samples(Sequence[dict[str, Any]]):
    """Samples of a tar in memory, ``{"__key__": key, extension: bytes}``; content is copied out of it when asked for.

    Args:
        content: the tar.
        members: for each sample its key and (extension, first byte, last byte + 1) of its members.

    """

    def __init__(self, content: bytes | memoryview, members: list[tuple[str, list[tuple[str, int, int]]]]) -> None:
        self._content, self._members = content, members

    def __len__(self) -> int:
        return len(self._members)

    @overload
    def __getitem__(self, at: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[dict[str, Any]]: ...
    def __getitem__(self, at: int | slice) -> dict[str, Any] | Sequence[dict[str, Any]]:
        if isinstance(at, slice):
            return Samples(self._content, self._members[at])
        key, members = self._members[at]
        return {"__key__": key, **{extension: bytes(self._content[start:stop]) for extension, start, stop in members}}


def read_samples(content: bytes | memoryview, name: str) -> Sequence[dict[str, Any]]:
    """Return samples as ``{"__key__": key, extension: bytes}``: members in a row whose names differ in the extension.

    Args:
        content: the tar, verified.
        name: for messages.

    """
    samples: list[tuple[str, list[tuple[str, int, int]]]] = []
    current = None
    at = 0
    while at + _BLOCK <= len(content) and content[at]:
        path, size, kind, prefix = _HEADER.unpack_from(content, at)
        if kind not in _PLAIN or prefix != b"\0":
            return _read_with_webdataset(content, name)
        folder, slash, file = path.rstrip(b"\0").rpartition(b"/")
        stem, _, extension = file.partition(b".")
        key = folder + slash + stem
        if key != current:
            current = key
            samples.append((key.decode(), []))
        start, length = at + _BLOCK, int(size, 8)
        samples[-1][1].append((extension.lower().decode(), start, start + length))
        at = start + (length + _BLOCK - 1) // _BLOCK * _BLOCK
    return Samples(content, samples)


def _read_with_webdataset(content: bytes | memoryview, name: str) -> list[dict[str, Any]]:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    files = tar_file_expander([{"url": name, "stream": io.BytesIO(content)}])
    hidden = ("__url__", "__local_path__")
    return [{key: value for key, value in sample.items() if key not in hidden} for sample in group_by_keys(files)]
